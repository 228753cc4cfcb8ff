"""Limits of this machine's processor, measured: copy bandwidth and rate of exponentials."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numba import njit

from segresmamba.ops.cpu.layout import LANES
from segresmamba.ops.cpu.simd import exp2, load, store
from segresmamba.ops.cpu.threads import run

_ROWS, _ROUNDS = 128, 4096  # 128 x 16 float32 in and out: 16 KiB, in the first-level cache


@njit(nogil=True, fastmath={"contract", "nsz"})
def _exponentials(x, y):
    for _ in range(_ROUNDS):
        for row in range(_ROWS):
            store(y, row, 0, exp2(load(x, row, 0)))


def copy_bytes_per_s(milliseconds: Callable[[Callable[[], object]], float]) -> float:
    """Bytes read and written per second by a large copy."""
    source = torch.zeros(1 << 28, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds(lambda: target.copy_(source)) * 1e3


def exponentials_per_s(milliseconds: Callable[[Callable[[], object]], float]) -> float:
    """The kernels' own vector exponential per second, one array per thread."""
    threads = torch.get_num_threads()
    x = -np.random.default_rng(0).random((_ROWS, LANES), np.float32)
    outs = [np.empty_like(x) for _ in range(threads)]
    parts = [(i, i + 1) for i in range(threads)]
    time_ms = milliseconds(lambda: run(lambda number, *_: _exponentials(x, outs[number]), parts))
    return threads * _ROUNDS * x.size / time_ms * 1e3
