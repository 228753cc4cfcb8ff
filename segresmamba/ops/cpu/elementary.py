"""Elementary functions and the compiler settings that the cpu kernels share."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

logger = logging.getLogger(__name__)

_LOG2E = np.float32(math.log2(math.e))
# exp2(f) on [-0.5, 0.5]: minimax polynomial, relative error below 2e-8 before rounding.
_P6, _P5, _P4 = np.float32(1.5353362e-4), np.float32(1.3398874e-3), np.float32(9.6184373e-3)
_P3, _P2, _P1 = np.float32(5.5503324e-2), np.float32(2.4022648e-1), np.float32(6.9314718e-1)
_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)
_LOW, _HIGH = np.float32(-127.0), np.float32(128.0)
_BIAS, _MANTISSA = np.int32(127), np.int32(23)

# Fused multiply-add is allowed, NaN and infinities keep their meaning; only `reorder` may also
# change the order of a sum.
_FAST = {"contract", "nsz"}
inline = njit(fastmath=_FAST)
reorder = njit(fastmath=_FAST | {"reassoc"})


def kernel(signature: str) -> Callable[[Callable[..., None]], Any]:
    """Compile one specialisation, without the GIL, and keep it on disk where that is possible."""

    def compile_(function: Callable[..., None]) -> Any:
        try:
            return njit(signature, fastmath=_FAST, nogil=True, cache=True)(function)
        except RuntimeError as error:  # a read-only install without a writable home
            logger.info("compiled kernels are not kept: %s", error)
            return njit(signature, fastmath=_FAST, nogil=True)(function)

    return compile_


@inline
def exp2(x: Any) -> Any:
    """2 ** x without a library call, so that the loop around it vectorises; NaN stays NaN."""
    x = max(x, _LOW)
    x = min(x, _HIGH)
    whole = np.rint(x)
    f = x - whole
    p = _P6 * f + _P5
    p = p * f + _P4
    p = p * f + _P3
    p = p * f + _P2
    p = p * f + _P1
    p = p * f + _ONE
    return p * np.int32((np.int32(whole) + _BIAS) << _MANTISSA).view(np.float32)


@inline
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return _ONE / (_ONE + exp2(-x * _LOG2E))


@inline
def softplus(x: Any) -> Any:
    """max(x, 0) + log1p(exp(-|x|)), the logarithm as the series of 2 atanh(t / (2 + t))."""
    t = exp2(-abs(x) * _LOG2E)
    s = t / (_TWO + t)
    q = s * s
    p = np.float32(1 / 13) * q + np.float32(1 / 11)
    p = p * q + np.float32(1 / 9)
    p = p * q + np.float32(1 / 7)
    p = p * q + np.float32(1 / 5)
    p = p * q + np.float32(1 / 3)
    p = p * q + _ONE
    return (_ZERO if x < _ZERO else x) + _TWO * s * p


@inline
def token_of(position: Any, length: Any, order: Any) -> Any:
    """Token that stands at a position of (slices, reverse); see segresmamba.ops.orders."""
    slices, reverse = order
    if reverse:
        return length - 1 - position
    return (position % slices) * (length // slices) + position // slices
