"""Memory for whole volumes."""

from __future__ import annotations

import mmap
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt


def block(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of zeros whose memory goes back to the system as soon as it is let go.

    The C library keeps what it has freed of arrays up to 32 MiB for later ones, and a conversion,
    which lets one volume go for the next, would take up to twice what it needs.
    """
    size = max(1, prod(shape)) * np.dtype(dtype).itemsize
    pages = _Pages(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype, prod(shape)).reshape(shape)


def free_before(view: npt.NDArray[Any]) -> None:
    """Give back what lies before a view of a block: it reads as zeros. Does nothing to others."""
    whole: Any = view.base
    pages = getattr(getattr(whole, "base", None), "obj", None)  # behind frombuffer's memoryview
    if isinstance(pages, _Pages):
        before = view.ctypes.data - whole.ctypes.data
        if before >= mmap.PAGESIZE:
            pages.madvise(mmap.MADV_DONTNEED, 0, before - before % mmap.PAGESIZE)


class _Pages(mmap.mmap):
    """Memory of a block."""
