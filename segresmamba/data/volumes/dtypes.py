"""The dtype that a policy stores images in, and what that may cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segresmamba.data.preprocessing import Policy
from segresmamba.data.records import ChannelStatistics
from segresmamba.data.volumes.mapped_arrays import block, free_before
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
        image_CDHW: int16 or float32. It is used up if it is a `block`, unless it is returned.
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
    pairs = list(zip(image_CDHW, statistics, strict=True))
    scale = tuple(_scale(*pair) if policy.dtype == "int16" else 1.0 for pair in pairs)
    stored_CDHW = block(image_CDHW.shape, policy.dtype)
    for number, ((channel_DHW, of_channel), unit) in enumerate(zip(pairs, scale, strict=True)):
        change = _narrow(channel_DHW, stored_CDHW[number], unit)
        _require_small(change, of_channel, policy, f"{case}: channel {number}")
    return stored_CDHW, scale if set(scale) != {1.0} else ()


def _narrow(channel_DHW: npt.NDArray[Any], stored_DHW: npt.NDArray[Any], unit: float) -> float:
    """Fill a channel as it is stored, give up the other; the largest change of an intensity."""
    change = 0.0
    for plane_HW, values_HW in zip(stored_DHW, channel_DHW, strict=True):
        free_before(values_HW)
        scaled_HW = values_HW / unit
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            plane_HW[:] = np.rint(scaled_HW) if plane_HW.dtype.kind == "i" else scaled_HW
        change = max(change, float(np.abs(plane_HW * np.float64(unit) - values_HW).max()))
    return change


def _scale(channel_DHW: npt.NDArray[Any], statistics: ChannelStatistics) -> float:
    limits = np.iinfo(np.int16)
    fits = limits.min <= statistics.min and statistics.max <= limits.max
    if fits and all((plane == np.rint(plane)).all() for plane in channel_DHW):
        return 1.0
    return max(abs(statistics.min), abs(statistics.max)) / limits.max


def _require_small(
    change: float, statistics: ChannelStatistics, policy: Policy, channel: str
) -> None:
    low, high = statistics.percentile_00_5, statistics.percentile_99_5
    if change > _TOLERANCE * (high - low):
        raise DataError(
            f"{policy.dtype} would change the intensities of a case",
            where=channel,
            got=f"by up to {change:.3g}; 99 % of its values lie between {low:.4g} and "
            f"{high:.4g}, all between {statistics.min:.4g} and {statistics.max:.4g}",
            remedy="convert with --dtype float32, or auto",
        )
