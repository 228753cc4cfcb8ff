"""The files of a store, the same for a folder, a zip file and a URL.

Nothing is opened before it is read. An open file belongs to its process: a `Files` that is sent to
another process opens its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ByteRange = tuple[int, int]
"""First byte and number of bytes."""
Buffer = npt.NDArray[np.uint8]
"""Bytes of a file. An array, as google_crc32c takes no memoryview of memory that can change."""

PATIENCE_S = 300.0
"""How long a server that gives no answer is asked again; the default of `data.patience_s`."""


class Blob(ABC):
    """One large file that is read in parts."""

    @abstractmethod
    def tail(self, count: int) -> bytes:
        """Read the last `count` bytes.

        Raises:
            OSError: If the file is shorter or cannot be read.
        """

    @abstractmethod
    def read_ranges(self, ranges: Sequence[ByteRange]) -> Iterator[Buffer]:
        """Read the bytes of each range. A buffer is valid until the next one is asked for.

        Args:
            ranges: Ranges in ascending order.

        Raises:
            OSError: If a range lies outside the file or cannot be read.
        """


class Files(ABC):
    """The files of a store, by names like `case/0/zarr.json`.

    Attributes:
        where: The folder, zip file or URL, for messages.
    """

    where: str

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Read a small file.

        Raises:
            FileNotFoundError: If there is no such file.
            OSError: If it cannot be read.
            DataError: If the server cannot be reached or refuses access.
        """

    @abstractmethod
    def blob(self, name: str) -> Blob:
        """A large file. It raises the same errors as `read`."""

    @abstractmethod
    def sizes(self, folder: str) -> dict[str, int]:
        """Name and bytes of every file below a folder."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Names of the folders at the top, sorted."""

    @abstractmethod
    def copy(self, name: str, target: Path) -> None:
        """Copy a file to a local path."""

    @abstractmethod
    def zarr_array(self, name: str) -> Any:
        """Open an array with Zarr, read-only."""

    def join(self, name: str) -> str:
        """Full path or URL of a file, for messages."""
        return f"{self.where.rstrip('/')}/{name}".rstrip("/")
