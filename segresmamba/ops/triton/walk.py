"""Parts of the kernels that walk along the tokens of a chunk.

Each lane of a warp has one channel and keeps its states in registers, so a step of the recurrence
needs no other lane. A walk reads STEP tokens at once, as a tile (STEP, LANES) of which each lane
has a column, and is unrolled over them. With the tokens spread over the lanes instead, the outputs
took 24.1 instructions per state and token; now they take 9.4 (docs/performance.md, "GPU").
"""

import triton
import triton.language as tl


@triton.jit
def lanes_of_program(channels, groups, LANES: tl.constexpr):
    """(group, channels, which of them exist) of the second grid axis; a block stays in a group.

    The kernel hides from the compiler that channels are contiguous. To read more of them at once,
    the compiler would give several channels to a lane and spread a channel's tokens over lanes.
    """
    width = channels // groups
    blocks = tl.cdiv(width, LANES)
    group = tl.program_id(1) // blocks
    lane = tl.max_contiguous(tl.arange(0, LANES), 1)
    place = tl.program_id(1) % blocks * LANES + lane
    return group, group * width + place, place < width


@triton.jit
def places(token, token_stride, channel, channel_stride):
    """Offsets of a tile (tokens, channels) in an array of any strides."""
    along = token.to(tl.int64) * token_stride
    return along[:, None] + (channel.to(tl.int64) * channel_stride)[None, :]


@triton.jit
def pick(tile, row, index: tl.constexpr):
    """One row of a tile, at no cost at run time."""
    # The compiler drops an addition of minus zero, which changes no number. That of plus zero has
    # to stay: it turns minus zero into plus zero.
    return tl.sum(tl.where(row[:, None] == index, tile, -0.0), 0)
