"""Arguments that no network can be built or used with."""

from __future__ import annotations

import math
from collections.abc import Sequence


class ArgumentError(ValueError):
    """Names the argument, so that a caller can say which of its own settings it came from.

    Args:
        name: The argument; "patch" for the size of a training crop.
        rule: What it has to be, as the sentence goes on after its name.
        got: The value received.
    """

    def __init__(self, name: str, rule: str, got: object) -> None:
        self.name, self.rule, self.got = name, rule, got
        super().__init__(f"{name} {rule}, got {got}")


def check_counts(least: int, **counts: int) -> None:
    """Refuse counts below their least value.

    Raises:
        ArgumentError: For the first of them.
    """
    for name, count in counts.items():
        if count < least:
            raise ArgumentError(name, f"must be at least {least}", count)


def check_divisible(name: str, count: int, divisor: int, reason: str) -> None:
    """Refuse a count that something in the network cannot divide.

    Raises:
        ArgumentError: If it is below 1 or not divisible.
    """
    check_counts(1, **{name: count})
    if count % divisor:
        raise ArgumentError(name, f"must be divisible by {divisor} ({reason})", count)


def check_patch_side(size: Sequence[int], deepest: int) -> None:
    """Refuse a patch that the deepest level of a network sees as a single voxel.

    Args:
        size: (D, H, W) in voxels.
        deepest: Voxels of the input along a side of a voxel there.

    Raises:
        ArgumentError: If no side of the patch is longer than that.
    """
    if max(size) <= deepest:
        rule = (
            f"needs a side of more than {deepest} voxels: at the deepest level of this network "
            f"it is a single voxel"
        )
        raise ArgumentError("patch", rule, times(size))


def check_slices(slices: int, sides: Sequence[int], place: str) -> None:
    """Refuse a number of slices that does not divide the tokens of a feature map.

    Args:
        slices: Of the inter-slice scan.
        sides: (D, H, W) of the map.
        place: Where in the network it is.

    Raises:
        ArgumentError: Then.
    """
    tokens = math.prod(sides)
    if tokens % slices:
        rule = (
            f"must divide the {tokens} tokens ({times(sides)}) of {place} at this size; "
            "unset takes each map's depth"
        )
        raise ArgumentError("num_slices", rule, slices)


def times(size: Sequence[int]) -> str:
    """A size as people write it."""
    return " x ".join(map(str, size))
