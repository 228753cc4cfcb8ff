"""What is measured on a case once, so that training need not read it whole."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from segresmamba.data.records import ChannelStatistics

_POSITIONS_MIN = 10_000
_POSITIONS_SHARE = 0.01
_MOST_SORTED = 1 << 20
_SAMPLE = 1000


def channel_statistics(channel_DHW: npt.NDArray[Any]) -> ChannelStatistics:
    """Intensities of one channel over its non-zero voxels, of which there is one at least.

    No copy of the channel is made. Percentiles are those of a million voxels at even distances,
    or of all where there are not so many.
    """
    count, total, low, high = 0, 0.0, np.inf, -np.inf
    for values in _planes_of(channel_DHW, channel_DHW):
        count += values.size
        total += float(values.sum(dtype=np.float64))
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    mean = total / count
    squares = sum(
        float(np.square(values - mean, dtype=np.float64).sum())
        for values in _planes_of(channel_DHW, channel_DHW)
    )
    percentiles = np.percentile(_every(channel_DHW, channel_DHW, count), (0.5, 99.5))
    return ChannelStatistics(
        mean=mean,
        std=float(np.sqrt(squares / count)),
        min=low,
        max=high,
        percentile_00_5=float(percentiles[0]),
        percentile_99_5=float(percentiles[1]),
    )


def foreground_sample(
    channel_DHW: npt.NDArray[Any], label_DHW: npt.NDArray[Any], voxels: int
) -> tuple[float, ...]:
    """A thousand intensities of the labelled voxels that stand for all of them.

    They are the values at even ranks, from least to greatest, so that their mean, deviation and
    percentiles are those of all to a thousandth. Nothing where nothing is labelled.

    Args:
        channel_DHW: Of the image.
        label_DHW: On the same grid.
        voxels: How many are labelled.
    """
    if not voxels:
        return ()
    ranks = (np.arange(_SAMPLE) + 0.5) / _SAMPLE
    values = np.quantile(_every(channel_DHW, label_DHW, voxels), ranks)
    return tuple(float(f"{value:.6g}") for value in values)


def _planes_of(
    channel_DHW: npt.NDArray[Any], mask_DHW: npt.NDArray[Any]
) -> Iterator[npt.NDArray[Any]]:
    """The voxels where the mask is not 0, plane by plane; planes without any are left out."""
    planes = (plane[mask != 0] for plane, mask in zip(channel_DHW, mask_DHW, strict=True))
    return (values for values in planes if values.size)


def _every(
    channel_DHW: npt.NDArray[Any], mask_DHW: npt.NDArray[Any], count: int
) -> npt.NDArray[Any]:
    """The voxels where the mask is not 0; if they are more than a million, so many of them."""
    step, skip, parts = max(1, count // _MOST_SORTED), 0, []
    for values in _planes_of(channel_DHW, mask_DHW):
        parts.append(values[skip::step].copy())  # a view would keep the others
        skip = (skip - values.size) % step
    return np.concatenate(parts)


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
        drawn.append(_places(label_DHW, value, np.sort(chosen)))
    return np.concatenate([np.empty((0, 3), np.uint16), *drawn])


def _places(
    label_DHW: npt.NDArray[Any], value: int, ranks: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint16]:
    """Where in raster order the voxels of a class with these ranks lie."""
    # By planes: indices take eight bytes each.
    places, seen = [], 0
    for depth, plane_HW in enumerate(label_DHW):
        found = np.flatnonzero(plane_HW == value)
        first, last = np.searchsorted(ranks, (seen, seen + len(found)))
        height, width = np.unravel_index(found[ranks[first:last] - seen], plane_HW.shape)
        places.append(np.stack([np.full(last - first, depth), height, width], axis=1))
        seen += len(found)
    return np.concatenate(places).astype(np.uint16)
