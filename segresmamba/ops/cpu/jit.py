"""How kernels are compiled."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit

logger = logging.getLogger(__name__)

# Fused multiply-add is allowed; NaN, infinities and the order of sums keep their meaning.
FAST = ("contract", "nsz")


def inline(function: Callable[..., Any]) -> Any:
    """A part of a kernel."""
    return njit(fastmath=set(FAST))(function)


def kernel(signature: str) -> Callable[[Callable[..., None]], Any]:
    """Compile a kernel for one signature, without the GIL; keep it on disk where that is possible.

    Compiled code is kept beside the source, or in the user's cache folder if the source is
    read-only, or not at all.
    """

    def compile_(function: Callable[..., None]) -> Any:
        # Numba looks only at the kernel's own file to see whether kept code is stale.
        function.__qualname__ += f"-{_digest()}"
        options = {"fastmath": set(FAST), "nogil": True}
        try:
            return njit(signature, cache=True, **options)(function)
        except RuntimeError as error:
            logger.info("compiled kernels are not kept: %s", error)
            return njit(signature, **options)(function)

    return compile_


@cache
def _digest() -> str:
    """Identity of the source of all kernels."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
