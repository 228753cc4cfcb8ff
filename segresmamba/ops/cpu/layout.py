"""Sizes that the kernels and their callers agree on."""

LANES = 16
"""Channels computed together: one 512-bit or two 256-bit vectors of float32."""
TILE = 64
"""Positions computed together, and between two checkpoints of the state."""


def channel_blocks(channels: int, groups: int = 1) -> int:
    """Blocks of at most LANES channels; a block never crosses a group."""
    return groups * -(-(channels // groups) // LANES)


def tiles(length: int) -> int:
    """Tiles of a sequence."""
    return -(-length // TILE)
