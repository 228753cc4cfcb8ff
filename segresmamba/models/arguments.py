"""Refuses arguments that no network can be built or used with.

Without these checks a run would fail in its first step, with the message of some layer and far from
the setting that is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


class ArgumentError(ValueError):
    """A wrong argument, by name, so that a caller can say which of its own settings it came from.

    Args:
        name: The argument; "patch" for the size of a training crop.
        rule: The rest of the sentence that begins with the name, such as "must be at least 1".
        got: The value received.
    """

    def __init__(self, name: str, rule: str, got: object) -> None:
        self.name, self.rule, self.got = name, rule, got
        super().__init__(f"{name} {rule}, got {got}")


def check_counts(least: int, **counts: int) -> None:
    """Refuse counts below `least`.

    Raises:
        ArgumentError: For the first such count.
    """
    for name, count in counts.items():
        if count < least:
            raise ArgumentError(name, f"must be at least {least}", count)


def check_mamba(
    spatial_dims: int, in_channels: int, out_channels: int, d_state: int, d_conv: int, expand: int
) -> None:
    """Refuse settings that no network with Mamba layers can have.

    Raises:
        ArgumentError: For anything but three dimensions, or a count below 1.
    """
    if spatial_dims != 3:
        raise ArgumentError("spatial_dims", "must be 3", spatial_dims)
    check_counts(
        1,
        in_channels=in_channels,
        out_channels=out_channels,
        d_state=d_state,
        d_conv=d_conv,
        expand=expand,
    )


def check_divisible(name: str, count: int, divisor: int, reason: str) -> None:
    """Refuse a count that is below 1 or that `divisor` does not divide.

    Raises:
        ArgumentError: With the reason.
    """
    check_counts(1, **{name: count})
    if count % divisor:
        raise ArgumentError(name, f"must be divisible by {divisor} ({reason})", count)


def each_axis(value: int | Sequence[int]) -> tuple[int, ...]:
    """The three values of something that one number may give for all axes."""
    return (value,) * 3 if isinstance(value, int) else tuple(value)


def check_patch_side(size: Sequence[int], deepest: int | Sequence[int]) -> None:
    """Refuse a patch that the deepest level of a network sees as a single voxel.

    Args:
        size: (D, H, W) in voxels.
        deepest: Side of a voxel of the deepest level, in voxels of the input; one number, or one
            for each axis.

    Raises:
        ArgumentError: If no side of the patch is longer than that.
    """
    sides = each_axis(deepest)
    if all(side <= least for side, least in zip(size, sides, strict=True)):
        rule = (
            f"needs a side of more than {deepest if isinstance(deepest, int) else times(sides)} "
            f"voxels: at the deepest level of this network "
            f"it is a single voxel"
        )
        raise ArgumentError("patch", rule, times(size))


def check_slices(slices: int, sides: Sequence[int], place: str) -> None:
    """Refuse a number of slices that does not divide the tokens of a feature map.

    Args:
        slices: Slices of the inter-slice scan.
        sides: (D, H, W) of the map.
        place: Name of the map, such as "stage 0".

    Raises:
        ArgumentError: With the number of tokens and the place.
    """
    tokens = math.prod(sides)
    if tokens % slices:
        rule = (
            f"must divide the {tokens} tokens ({times(sides)}) of {place} at this size; "
            "unset takes each map's depth"
        )
        raise ArgumentError("num_slices", rule, slices)


def times(size: Sequence[int]) -> str:
    """A size as people write it: 128 x 128 x 64."""
    return " x ".join(map(str, size))


def check_least_levels(least: int, **widths: Sequence[int]) -> None:
    """Refuse settings that do not name a width for so many levels, or name one below 1."""
    # Keywords, so that the error names the setting as the configuration does.
    for name, values in widths.items():
        if len(values) < least:
            raise ArgumentError(name, f"must name {least} levels or more", tuple(values))
        check_counts(1, **{name: min(values)})
