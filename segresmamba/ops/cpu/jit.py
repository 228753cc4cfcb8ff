"""How kernels are compiled.

A kernel has one fixed signature and is compiled when its module is imported. Compiling at the first
call instead would let numba compile it again for every new memory layout.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

logger = logging.getLogger(__name__)

# Fused multiply-add is allowed. Numba's "fast" would also let the compiler drop NaN and infinities
# and reorder sums, and tests promise that NaN stays where it belongs.
FAST = ("contract", "nsz")

# A checksum of the source of all kernels.
_SOURCES = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
_DIGEST = hashlib.sha256(b"".join(_SOURCES)).hexdigest()[:12]


def inline(function: Callable[..., Any]) -> Any:
    """A part of a kernel, compiled into it."""
    return njit(fastmath=set(FAST))(function)


def kernel(signature: str) -> Callable[[Callable[..., None]], Any]:
    """Compile a kernel for one signature; it releases the GIL.

    The compiled code is kept beside the source, or in the user's cache folder if the source is
    read-only. If neither can be written, the code is not kept.
    """

    def compile_(function: Callable[..., None]) -> Any:
        # Numba checks only the kernel's own file to see whether kept code is stale. The name of a
        # cache file contains the qualified name, so a change of any file gives a new cache file.
        function.__qualname__ += f"-{_DIGEST}"
        options = {"fastmath": set(FAST), "nogil": True}
        try:
            return njit(signature, cache=True, **options)(function)
        except RuntimeError as error:
            logger.info("compiled kernels are not kept: %s", error)
            return njit(signature, **options)(function)

    return compile_
