"""What the kernels share that walk along the tokens of a chunk.

Each lane of a warp has a channel, whose states are in its registers, so that a step of the
recurrence needs no other lane. The values of STEP tokens are read at once, as a tile (STEP, LANES)
of which a lane has a column, and the walk is unrolled over them.
"""

import triton
import triton.language as tl


@triton.jit
def lanes_of_program(channels, groups, LANES: tl.constexpr):
    """(group, channels, which of them exist) of the second grid axis; a block stays in a group.

    That channels lie in a row is hidden from the compiler: to read more of them at once it would
    give a lane several channels, and the tokens of a channel to several lanes.
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
    """One row of a tile. It costs nothing: minus zero is what an addition leaves unchanged."""
    return tl.sum(tl.where(row[:, None] == index, tile, -0.0), 0)
