"""What conversion measures on a case once, so that training need not read the case whole.

All functions work plane by plane: a copy of a whole volume would double a converter's memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from segresmamba.data.records import ChannelStatistics

_POSITIONS_MIN, _POSITIONS_SHARE = 10_000, 0.01  # nnU-Net's
# Percentiles need a copy of the voxels, which must stay small beside the volume.
_MOST_SORTED = 1 << 20
# All cases keep theirs in dataset.json, so it must be short.
_FOREGROUND_SAMPLE = 1000


def channel_statistics(channel_DHW: npt.NDArray[Any]) -> ChannelStatistics:
    """Statistics of one channel over its non-zero voxels, of which there is at least one.

    Percentiles are those of about a million voxels at even distances, or of all if they are fewer.
    """
    count, total, low, high = 0, 0.0, np.inf, -np.inf
    for values in _masked_planes(channel_DHW, channel_DHW):
        count += values.size
        total += float(values.sum(dtype=np.float64))
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    mean = total / count
    # In a second pass: sums of squares alone would lose a small deviation of large values.
    squares = sum(
        float(np.square(values - mean, dtype=np.float64).sum())
        for values in _masked_planes(channel_DHW, channel_DHW)
    )
    percentiles = np.percentile(_masked_sample(channel_DHW, channel_DHW, count), (0.5, 99.5))
    return ChannelStatistics(
        mean=mean,
        std=float(np.sqrt(squares / count)),
        min=low,
        max=high,
        percentile_00_5=float(percentiles[0]),
        percentile_99_5=float(percentiles[1]),
        nonzero_share=count / channel_DHW.size,
    )


def foreground_sample(
    channel_DHW: npt.NDArray[Any], label_DHW: npt.NDArray[Any], voxels: int
) -> tuple[float, ...]:
    """A thousand intensities that stand for those of all labelled voxels.

    They are the quantiles at even ranks, so that their mean, deviation and percentiles are those of
    all labelled voxels to a thousandth. A label without foreground gives none.

    Args:
        channel_DHW: One channel of the image.
        label_DHW: The label on the same grid.
        voxels: How many voxels are labelled.
    """
    if not voxels:
        return ()
    ranks = (np.arange(_FOREGROUND_SAMPLE) + 0.5) / _FOREGROUND_SAMPLE
    values = np.quantile(_masked_sample(channel_DHW, label_DHW, voxels), ranks)
    return tuple(float(f"{value:.6g}") for value in values)  # the record keeps them as text


def _masked_planes(
    channel_DHW: npt.NDArray[Any], mask_DHW: npt.NDArray[Any]
) -> Iterator[npt.NDArray[Any]]:
    """The voxels where the mask is not 0, plane by plane; empty planes are left out."""
    planes = (plane[mask != 0] for plane, mask in zip(channel_DHW, mask_DHW, strict=True))
    return (values for values in planes if values.size)


def _masked_sample(
    channel_DHW: npt.NDArray[Any], mask_DHW: npt.NDArray[Any], count: int
) -> npt.NDArray[Any]:
    """The `count` voxels where the mask is not 0, or about a million of them at even distances."""
    step, skip, parts = max(1, count // _MOST_SORTED), 0, []
    for values in _masked_planes(channel_DHW, mask_DHW):
        parts.append(values[skip::step].copy())  # a view would keep the whole plane
        skip = (skip - values.size) % step
    return np.concatenate(parts)


def with_ignored(labels: dict[str, int], ignore_value: int | None) -> dict[str, int]:
    """All values that a label may hold: those of classes, and that of voxels without annotation."""
    return labels if ignore_value is None else labels | {"ignore": ignore_value}


def annotated(label_DHW: npt.NDArray[Any], ignore_value: int | None) -> npt.NDArray[Any]:
    """The label with background where nobody has annotated; a copy only if there may be such."""
    if ignore_value is None:
        return label_DHW
    return np.where(label_DHW == ignore_value, label_DHW.dtype.type(0), label_DHW)


def class_voxels(label_DHW: npt.NDArray[Any]) -> dict[int, int]:
    """Number of voxels of each foreground class that occurs."""
    highest = int(label_DHW.max())
    counts = np.zeros(highest + 1, np.int64)
    for plane in label_DHW:  # bincount copies to int64: eight times the size of a uint8 volume
        counts += np.bincount(plane.ravel(), minlength=highest + 1)
    return {value: int(count) for value, count in enumerate(counts) if value and count}


def positions_kept(voxels: int) -> int:
    """How many positions of a class are stored, of so many voxels.

    As in nnU-Net: 10 000, or 1 % where that is more, or all where there are fewer.
    """
    return min(voxels, max(_POSITIONS_MIN, int(np.ceil(_POSITIONS_SHARE * voxels))))


def class_positions(
    label_DHW: npt.NDArray[Any], voxels: dict[int, int], case_id: str
) -> npt.NDArray[np.uint16]:
    """Draw voxels of each class without repetition, the same ones for the same case id.

    Returns:
        (n, 3) indices D, H, W: one class of `voxels` after the other, each in raster order.
    """
    # Not hash(): that of a string differs from process to process.
    rng = np.random.default_rng(zlib.crc32(case_id.encode()))
    drawn = []
    for value, count in voxels.items():
        chosen = rng.choice(count, positions_kept(count), replace=False, shuffle=False)
        drawn.append(_places(label_DHW, value, np.sort(chosen)))
    return np.concatenate([np.empty((0, 3), np.uint16), *drawn])


def _places(
    label_DHW: npt.NDArray[Any], value: int, ranks: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint16]:
    """Indices of those voxels of a class that have these ranks in raster order."""
    places, seen = [], 0
    for depth, plane_HW in enumerate(label_DHW):
        found = np.flatnonzero(plane_HW == value)
        first, last = np.searchsorted(ranks, (seen, seen + len(found)))
        height, width = np.unravel_index(found[ranks[first:last] - seen], plane_HW.shape)
        places.append(np.stack([np.full(last - first, depth), height, width], axis=1))
        seen += len(found)
    return np.concatenate(places).astype(np.uint16)
