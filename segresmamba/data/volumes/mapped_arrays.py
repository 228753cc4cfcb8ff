"""Arrays for whole volumes, whose memory goes back to the system at once.

The C library keeps freed arrays of up to 32 MiB for later use. A conversion lets one volume go for
the next, so with ordinary arrays it would hold up to twice the memory that it needs.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt


def mapped_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of zeros whose memory is given back as soon as the last view of it is gone.

    Raises:
        MemoryError: If the array is larger than the memory of this machine.
    """
    size = max(1, prod(shape)) * np.dtype(dtype).itemsize
    # The system grants more than it has, and kills the process that then uses it.
    if size > (there := os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE):
        raise MemoryError(f"an array of {size} bytes; this machine has {there}")
    try:
        pages = _Pages(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"an array of {size} bytes: {error.strerror}") from error
    return np.frombuffer(pages, dtype, prod(shape)).reshape(shape)


def free_before(view: npt.NDArray[Any]) -> None:
    """Give back the memory before a view of an array from `mapped_zeros`; it then reads as zeros.

    Views of other arrays are left alone.
    """
    whole: Any = view.base
    pages = getattr(getattr(whole, "base", None), "obj", None)  # behind frombuffer's memoryview
    if isinstance(pages, _Pages):
        before = view.ctypes.data - whole.ctypes.data
        if before >= mmap.PAGESIZE:
            pages.madvise(mmap.MADV_DONTNEED, 0, before - before % mmap.PAGESIZE)


def release_freed_memory() -> None:
    """Give back to the system what the C library keeps of freed memory, where it can do that."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


class _Pages(mmap.mmap):
    """A type of its own, so that `free_before` never touches memory that others have mapped."""
