"""What libraries find in headers of files that are not NIfTI, and the errors that they raise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segresmamba.errors import DataError


@dataclass(frozen=True)
class OpenedFile:
    """An image file, a TIFF stack or a DICOM series whose header has been read."""

    affine: npt.NDArray[np.float64]
    """Voxel to RAS."""
    shape: tuple[int, ...]
    """(X, Y, Z); a file may have other dimensions."""
    dtype: np.dtype[Any]
    planes: Callable[[], Iterator[npt.NDArray[Any]]]
    """One (X, Y) plane after the other. Iterating raises the errors of opening."""


@contextmanager
def value_errors() -> Iterator[None]:
    """Errors of a library, which may be of any type, as one that says the file cannot be read."""
    try:
        yield
    except (DataError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
