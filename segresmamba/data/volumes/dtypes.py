"""The dtype that a policy stores images in, and how much of their precision that may cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segresmamba.data.preprocessing import Policy
from segresmamba.data.records import ChannelStatistics
from segresmamba.data.volumes.mapped_arrays import free_before, mapped_zeros
from segresmamba.errors import DataError

_TOLERANCE = 0.002
"""Largest accepted change of an intensity, about a hundredth of a standard deviation.

It is a share of the range from the 0.5th to the 99.5th percentile, which one voxel of metal does
not widen.
"""


def to_policy_dtype(
    image_CDHW: npt.NDArray[Any],
    statistics: Sequence[ChannelStatistics],
    policy: Policy,
    case: Path,
) -> tuple[npt.NDArray[Any], tuple[float, ...]]:
    """Convert an image to the dtype of the policy.

    int16 keeps channels of integers that fit. Other channels get a scale: 0 stays 0, and the
    largest intensity becomes the largest int16.

    Args:
        image_CDHW: int16 or float32. An array from `mapped_zeros` is used up, unless it is returned
            itself.
        statistics: Statistics of its channels.
        policy: The policy; its dtype "auto" leaves the image as it is.
        case: The case's folder, which errors name.

    Returns:
        The image; and the intensity of a stored 1 in each channel, () where that is 1 in all.

    Raises:
        DataError: If an intensity would change by more than the tolerance.
    """
    if policy.dtype in ("auto", image_CDHW.dtype.name):
        return image_CDHW, ()
    stored_CDHW = mapped_zeros(image_CDHW.shape, policy.dtype)
    scale = []
    for number, (channel_DHW, measured) in enumerate(zip(image_CDHW, statistics, strict=True)):
        unit = _int16_unit(channel_DHW, measured) if policy.dtype == "int16" else 1.0
        change = _move(channel_DHW, stored_CDHW[number], unit)
        if change > _TOLERANCE * (measured.percentile_99_5 - measured.percentile_00_5):
            raise DataError(
                f"{policy.dtype} would change the intensities of a case",
                where=f"{case}: channel {number}",
                got=f"by up to {change:.3g}; 99 % of its values lie between "
                f"{measured.percentile_00_5:.4g} and {measured.percentile_99_5:.4g}, all between "
                f"{measured.min:.4g} and {measured.max:.4g}",
                remedy="convert with --dtype float32, or auto",
            )
        scale.append(unit)
    return stored_CDHW, tuple(scale) if set(scale) != {1.0} else ()


def _int16_unit(channel_DHW: npt.NDArray[Any], statistics: ChannelStatistics) -> float:
    """The intensity that a stored 1 stands for."""
    limits = np.iinfo(np.int16)
    fits = limits.min <= statistics.min and statistics.max <= limits.max
    if fits and all((plane == np.rint(plane)).all() for plane in channel_DHW):
        return 1.0
    return max(abs(statistics.min), abs(statistics.max)) / limits.max


def _move(channel_DHW: npt.NDArray[Any], stored_DHW: npt.NDArray[Any], unit: float) -> float:
    """Fill a channel as it is stored and use up the other; return the largest change."""
    change = 0.0
    for plane_HW, values_HW in zip(stored_DHW, channel_DHW, strict=True):
        free_before(values_HW)
        scaled_HW = values_HW / unit
        with np.errstate(over="ignore"):  # an overflow becomes infinite, which is refused
            plane_HW[:] = np.rint(scaled_HW) if plane_HW.dtype.kind == "i" else scaled_HW
        change = max(change, float(np.abs(plane_HW * np.float64(unit) - values_HW).max()))
    return change
