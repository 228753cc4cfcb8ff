"""Where the bytes of a store lie: in a folder, in a zip file, or behind a URL.

Nothing is opened before it is read, and what is opened stays in its process: a `Files` that is sent
to another one opens its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ByteRange = tuple[int, int]
"""First byte and number of bytes."""
Buffer = memoryview | Any
"""Anything that `memoryview` takes."""


class Blob(ABC):
    """One file, of which parts are read."""

    @abstractmethod
    def tail(self, count: int) -> bytes:
        """The last bytes.

        Raises:
            OSError: If there are fewer, or they cannot be read.
        """

    @abstractmethod
    def spans(self, spans: Sequence[ByteRange]) -> Iterator[Buffer]:
        """The bytes of each span; a buffer is valid until the next one is asked for.

        Args:
            spans: Ascending.

        Raises:
            OSError: If one lies outside the file, or cannot be read.
        """


class Files(ABC):
    """The files of a store, by names like `case/0/zarr.json`.

    Attributes:
        where: The folder, zip file or URL, for messages.
    """

    where: str

    @property
    def _folder(self) -> str:
        """What Zarr has to put before all names; it ends with a slash if it is not empty."""
        return ""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A small file.

        Raises:
            FileNotFoundError: If there is none.
            OSError: If it cannot be read.
            DataError: If the server cannot be reached, or refuses.
        """

    @abstractmethod
    def blob(self, name: str) -> Blob:
        """A large file; errors as `read`."""

    @abstractmethod
    def sizes(self, folder: str) -> dict[str, int]:
        """Name and bytes of every file below a folder."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Names of the folders at the top, sorted."""

    @abstractmethod
    def copy(self, name: str, target: Path) -> None:
        """Write a file to a local one."""

    @abstractmethod
    def _zarr_store(self) -> Any:
        """What Zarr opens arrays from, to read only."""

    def zarr_array(self, name: str) -> Any:
        """An array as Zarr opens it, to read only."""
        import zarr

        return zarr.open_array(self._zarr_store(), path=f"{self._folder}{name}", mode="r")

    def join(self, name: str) -> str:
        """Where a file lies, for messages."""
        return f"{self.where.rstrip('/')}/{name}".rstrip("/")
