"""Limits of this machine's GPU, measured: copy bandwidth and rate of exponentials."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _exponentials(out_ptr, rounds, BLOCK: tl.constexpr):
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = -tl.cast(offset % 7, tl.float32)
    for _ in range(rounds):
        x = tl.exp2(x) - 3.0
    tl.store(out_ptr + offset, x)


def milliseconds(run) -> float:
    """Smallest time of a GPU function."""
    return triton.testing.do_bench(run, return_mode="min")


def copy_bytes_per_s() -> float:
    """Bytes read and written per second by a large copy."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds(lambda: target.copy_(source)) * 1e3


def exponentials_per_s() -> float:
    """exp2 per second with eight in flight per thread; the loop also subtracts once per exp2."""
    blocks, block, rounds = 8192, 1024, 256
    out = torch.empty(blocks * block, device="cuda")
    time_ms = milliseconds(lambda: _exponentials[(blocks,)](out, rounds, BLOCK=block))
    return blocks * block * rounds / time_ms * 1e3
