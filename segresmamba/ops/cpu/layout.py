"""Sizes that the kernels and their callers agree on; importing them does not import numba."""

# Channels computed together: one 512-bit or two 256-bit vectors of float32.
LANES = 16
# Positions computed together, and between two checkpoints of the state.
TILE = 64


def channel_blocks(channels: int, groups: int = 1) -> int:
    """Number of blocks of at most LANES channels; a block never crosses a group."""
    return groups * -(-(channels // groups) // LANES)


def tiles(length: int) -> int:
    """Number of tiles of a sequence."""
    return -(-length // TILE)
