"""The dtype that a policy stores images in, and what that may cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segresmamba.data.blocks import block
from segresmamba.data.manifest import ChannelStatistics
from segresmamba.data.policy import Policy
from segresmamba.errors import DataError

_TOLERANCE = 0.002
"""Largest change of an intensity, as a share of the range from the 0.5th to the 99.5th percentile
of its channel, which one metal voxel does not widen: about a hundredth of a standard deviation."""


def narrowed(
    image_CDHW: npt.NDArray[Any],
    statistics: Sequence[ChannelStatistics],
    policy: Policy,
    case: Path,
) -> tuple[npt.NDArray[Any], tuple[float, ...]]:
    """An image in the dtype of the policy.

    int16 keeps integers that fit as they are; other channels get a scale, so that 0 stays 0 and the
    largest intensity becomes the largest int16.

    Args:
        image_CDHW: int16 or float32.
        statistics: Of its channels.
        policy: What is asked for; auto leaves the image as it is.
        case: Named in errors.

    Returns:
        The image; and what a stored 1 stands for in each channel, () where that is 1 in all.

    Raises:
        DataError: If an intensity would change by more than the tolerance, or exceed the dtype.
    """
    if policy.dtype in ("auto", image_CDHW.dtype.name):
        return image_CDHW, ()
    if policy.dtype != "int16":
        stored_CDHW = _cast(image_CDHW, policy.dtype)
        _require_close(image_CDHW, stored_CDHW, (1.0,) * len(image_CDHW), statistics, policy, case)
        return stored_CDHW, ()
    scale = tuple(_scale(*pair) for pair in zip(image_CDHW, statistics, strict=True))
    stored_CDHW = block(image_CDHW.shape, np.int16)
    for stored_DHW, channel_DHW, unit in zip(stored_CDHW, image_CDHW, scale, strict=True):
        for plane, values in zip(stored_DHW, channel_DHW, strict=True):
            plane[:] = np.rint(values / unit)
    _require_close(image_CDHW, stored_CDHW, scale, statistics, policy, case)
    return stored_CDHW, scale if set(scale) != {1.0} else ()


def _cast(image_CDHW: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    stored_CDHW = block(image_CDHW.shape, dtype)
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        stored_CDHW[...] = image_CDHW
    return stored_CDHW


def _scale(channel_DHW: npt.NDArray[Any], statistics: ChannelStatistics) -> float:
    limits = np.iinfo(np.int16)
    fits = limits.min <= statistics.min and statistics.max <= limits.max
    if fits and all((plane == np.rint(plane)).all() for plane in channel_DHW):
        return 1.0
    return max(abs(statistics.min), abs(statistics.max)) / limits.max


def _require_close(
    image_CDHW: npt.NDArray[Any],
    stored_CDHW: npt.NDArray[Any],
    scale: Sequence[float],
    statistics: Sequence[ChannelStatistics],
    policy: Policy,
    case: Path,
) -> None:
    for number, (channel_DHW, stored_DHW, unit, of_channel) in enumerate(
        zip(image_CDHW, stored_CDHW, scale, statistics, strict=True)
    ):
        change = max(
            float(np.abs(plane * np.float64(unit) - values).max())
            for plane, values in zip(stored_DHW, channel_DHW, strict=True)
        )
        low, high = of_channel.percentile_00_5, of_channel.percentile_99_5
        if change > _TOLERANCE * (high - low):
            raise DataError(
                f"{policy.dtype} would change the intensities of a case",
                where=f"{case}: channel {number}",
                got=f"by up to {change:.3g}; 99 % of its values lie between {low:.4g} and "
                f"{high:.4g}, all between {of_channel.min:.4g} and {of_channel.max:.4g}",
                remedy="convert with --dtype float32, or auto",
            )
