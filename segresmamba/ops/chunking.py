"""How the triton backend cuts a sequence, and from that the memory that its operators take.

This module needs no Triton: the planner asks it on machines that have none.
"""

from __future__ import annotations

from torch import Tensor

# Tokens per chunk. Chunks are computed at the same time.
CHUNK = 128
# Channels per walking program, one for each lane of a warp, and tokens that it reads at once.
LANES, STEP = 32, 8
# Walking programs that fill a GPU: chunks are cut into pieces until there are as many.
WALKS = 4096
# Tokens per program of a convolution.
CONV_TOKENS = 256


def cdiv(items: int, size: int) -> int:
    """Parts of at most this size."""
    return -(-items // size)


def power_of_two(count: int) -> int:
    """The smallest power of two that is not below count."""
    return 1 << (count - 1).bit_length()


def pieces(batch: int, channels: int, groups: int, length: int) -> int:
    """Pieces of a chunk that are walked at the same time."""
    programs = batch * groups * cdiv(channels // groups, LANES) * cdiv(length, CHUNK)
    return min(CHUNK // STEP, power_of_two(cdiv(WALKS, max(1, programs))))


def is_dense(x_BDL: Tensor) -> bool:
    """Whether tokens and channels lie in a row; only batch items may lie apart."""
    _, channels, length = x_BDL.shape
    tokens_in_a_row = x_BDL.stride(2) == 1 or length == 1
    return tokens_in_a_row and (x_BDL.stride(1) == length or channels == 1)
