"""What is measured on a case once, so that training need not read it whole."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from segresmamba.data.manifest import ChannelStatistics

_POSITIONS_MIN = 10_000
_POSITIONS_SHARE = 0.01


def channel_statistics(image_CDHW: npt.NDArray[Any]) -> tuple[ChannelStatistics, ...]:
    """Intensities of each channel over its non-zero voxels."""
    return tuple(_statistics(channel[channel != 0]) for channel in image_CDHW)


def _statistics(values: npt.NDArray[Any]) -> ChannelStatistics:
    low, high = np.percentile(values, (0.5, 99.5))
    return ChannelStatistics(
        mean=float(values.mean(dtype=np.float64)),
        std=float(values.std(dtype=np.float64)),
        min=float(values.min()),
        max=float(values.max()),
        percentile_00_5=float(low),
        percentile_99_5=float(high),
    )


def class_voxels(label_DHW: npt.NDArray[Any]) -> dict[int, int]:
    """Number of voxels of each foreground class that occurs."""
    # By planes: bincount copies its argument to int64, eight times a whole uint8 volume.
    highest = int(label_DHW.max())
    counts = np.zeros(highest + 1, np.int64)
    for plane in label_DHW:
        counts += np.bincount(plane.ravel(), minlength=highest + 1)
    return {value: int(count) for value, count in enumerate(counts) if value and count}


def positions_kept(voxels: int) -> int:
    """How many of a class's voxels are stored.

    nnU-Net's rule: 10 000, or 1 % where that is more, and all where there are fewer.
    """
    return min(voxels, max(_POSITIONS_MIN, int(np.ceil(_POSITIONS_SHARE * voxels))))


def class_positions(
    label_DHW: npt.NDArray[Any], voxels: dict[int, int], case_id: str
) -> npt.NDArray[np.uint16]:
    """Draw voxels of each class, without repetition; the same ones for the same case id.

    Returns:
        (n, 3) D, H, W indices: the classes of `voxels` one after another, each in raster order.
    """
    rng = np.random.default_rng(zlib.crc32(case_id.encode()))
    drawn = []
    for value, count in voxels.items():
        chosen = rng.choice(count, positions_kept(count), replace=False, shuffle=False)
        flat = np.flatnonzero(label_DHW == value)[np.sort(chosen)]
        drawn.append(np.stack(np.unravel_index(flat, label_DHW.shape), axis=1))
    return np.concatenate([np.empty((0, 3), np.int64), *drawn]).astype(np.uint16)
