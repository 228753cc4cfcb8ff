"""What a library has found in the header of a file that is not NIfTI."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


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
