"""The result of a sliding window, written as plainly as possible: everything whole in memory.

It shares no code with the package but the normalisation. Places are found as nnU-Net finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, combinations, product
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from segresmamba import data
from segresmamba.data.volumes.resampling import GridTransform

Array = np.ndarray[Any, Any]
Network = Callable[[torch.Tensor], torch.Tensor]


def starts(size: int, patch: int, overlap: float) -> list[int]:
    """nnU-Net's `compute_steps_for_sliding_window` along one axis."""
    step = max(1.0, patch * (1 - overlap))  # nnU-Net would put windows at one place twice
    steps = int(np.ceil((size - patch) / step - 1e-6)) + 1
    actual = (size - patch) / (steps - 1) if steps > 1 else 0
    return [int(np.round(actual * number)) for number in range(steps)]


def gaussian(patch: Sequence[int]) -> Array:
    weights = np.ones(patch)
    for axis, size in enumerate(patch):
        line = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 8)) ** 2)
        weights = weights * np.expand_dims(line, [other for other in range(3) if other != axis])
    return weights


def nonzero(image_CDHW: Array) -> tuple[slice, ...]:
    places = np.argwhere((image_CDHW != 0).any(axis=0))
    return tuple(slice(a, b + 1) for a, b in zip(places.min(0), places.max(0), strict=True))


def logits(
    members: Sequence[tuple[Network, Sequence[int]]],
    image_CDHW: Array,
    normalisation_C4: Array,
    overlap: float,
    mirror_axes: Sequence[int] = (),
) -> Array:
    """Logits (K, D, H, W) of the box that is not zero; the mean over networks and their patches."""
    box = nonzero(image_CDHW)
    return np.mean(
        [_of_one(*one, image_CDHW, normalisation_C4, box, overlap, mirror_axes) for one in members],
        axis=0,
    )


def _of_one(
    network: Network,
    patch: Sequence[int],
    image_CDHW: Array,
    normalisation_C4: Array,
    box: tuple[slice, ...],
    overlap: float,
    mirror_axes: Sequence[int],
) -> Array:
    region, before = [], []
    for part, size, wanted in zip(box, image_CDHW.shape[1:], patch, strict=True):
        missing = max(wanted - (part.stop - part.start), 0)
        start = part.start - missing // 2
        start = min(max(start, 0), size - wanted) if missing and size >= wanted else start
        if size < wanted:
            start = -((wanted - size) // 2)
        region.append(
            np.clip(np.arange(start, start + part.stop - part.start + missing), 0, size - 1)
        )
        if size < wanted:
            region[-1] = np.clip(np.arange(start, start + wanted), 0, size - 1)
        before.append(part.start - start)
    extended = image_CDHW[np.ix_(range(len(image_CDHW)), *region)].astype(np.float32)
    bounds = torch.as_tensor(normalisation_C4)[None]
    x = data.normalise(torch.from_numpy(extended)[None], bounds)
    weights = gaussian(patch)
    total, summed = np.zeros(x.shape[2:]), 0.0
    flips = list(chain(*(combinations(mirror_axes, n) for n in range(len(mirror_axes) + 1))))
    axes = [starts(n, p, overlap) for n, p in zip(x.shape[2:], patch, strict=True)]
    for corner in product(*axes):
        place = tuple(slice(c, c + p) for c, p in zip(corner, patch, strict=True))
        window = x[:, :, *place]
        out = sum(
            network(window.flip([a + 2 for a in flip])).flip([a + 2 for a in flip])
            for flip in flips
        )
        placed = np.zeros((out.shape[1], *x.shape[2:]))
        placed[:, *place] = (out[0] / len(flips)).numpy() * weights
        summed = summed + placed
        total[place] += weights
    inner = tuple(slice(b, b + s.stop - s.start) for b, s in zip(before, box, strict=True))
    return (summed / total)[:, *inner]


def on_the_files_grid(
    values_KDHW: Array, box: tuple[slice, ...], transform: GridTransform
) -> tuple[Array, Array, Array]:
    """Values interpolated at every voxel of the files' grid.

    Returns:
        The interpolated values, the eight values that each was interpolated from (8, K, D, H, W),
        and which voxels have any.
    """
    places, known = [], []
    for (first, end), size, zoom, part, full in zip(
        transform.box_DHW,
        transform.shape_DHW,
        transform.zoom_DHW,
        box,
        transform.full_DHW,
        strict=True,
    ):
        voxels = np.arange(full) - first
        middle = (size - 1) / 2 + (voxels - (end - first - 1) / 2) / zoom
        middle = np.where((voxels >= 0) & (voxels < end - first), middle, np.nan)
        middle = np.clip(middle, 0, size - 1)
        inside = (middle >= part.start - 0.5) | (part.start == 0)
        inside &= (middle < part.stop - 0.5) | (part.stop == size)
        known.append(inside & ~np.isnan(middle))
        places.append(np.clip(np.nan_to_num(middle) - part.start, 0, part.stop - part.start - 1))
    grid = np.stack(np.meshgrid(*places, indexing="ij"))
    interpolated = [
        ndimage.map_coordinates(channel, grid, order=1, mode="nearest") for channel in values_KDHW
    ]
    corners = [
        values_KDHW[:, *np.ix_(*(one(p).astype(int) for one, p in zip(sides, places, strict=True)))]
        for sides in product([np.floor, np.ceil], repeat=3)
    ]
    inside_DHW = known[0][:, None, None] & known[1][:, None] & known[2]
    return np.stack(interpolated), np.stack(corners), inside_DHW
