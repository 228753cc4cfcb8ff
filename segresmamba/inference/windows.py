"""Where the windows over a volume lie, and how much each counts, one axis at a time.

The windows of an axis are evenly spaced, as in nnU-Net: the first begins where the box begins, and
the last ends where it ends. A window counts most in its middle, by a Gaussian whose deviation is an
eighth of its size, as in nnU-Net and MONAI. Windows form a grid and a Gaussian is a product over
the axes, so the share of a window among all that hold a voxel is such a product, too. Outputs that
are multiplied by their shares need only be added: neither a map of weights nor a division is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Literal

import numpy as np
import numpy.typing as npt

from segresmamba.data.volumes.resampling import VoxelRange

Box = tuple[VoxelRange, VoxelRange, VoxelRange]
"""Along each axis (D, H, W) the first voxel, and the one after the last."""

_SIGMA_SHARE = 1 / 8


@dataclass(frozen=True)
class AxisWindows:
    """The windows along one axis."""

    starts: tuple[int, ...]
    """Their first voxels; below 0 where the volume is smaller than a window."""
    patch: int
    """Their size."""
    shares_NP: npt.NDArray[np.float32]
    """The share of each window at each of its voxels; outside the box it means nothing."""

    @classmethod
    def over(cls, box: VoxelRange, size: int, patch: int, overlap: float) -> AxisWindows:
        """Windows that hold each voxel of a box.

        Args:
            box: The box, at least one voxel.
            size: Voxels of the volume.
            patch: Voxels of a window.
            overlap: Least share of a window that its neighbour holds too.
        """
        first, end = box
        spare = end - first - patch
        if spare > 0:
            steps = ceil(spare / max(1.0, patch * (1 - overlap)) - 1e-6)
            starts = [first + round(spare * index / steps) for index in range(steps + 1)]
        elif size > patch:  # around the box, within the volume
            starts = [min(max(0, first - (-spare) // 2), size - patch)]
        else:  # around the volume; half of what is missing, rounded down, lies before it
            starts = [-((patch - size) // 2)]
        offsets = np.arange(patch) - (patch - 1) / 2
        weights = np.exp(-0.5 * (offsets / (_SIGMA_SHARE * patch)) ** 2)
        places = [slice(start - starts[0], start - starts[0] + patch) for start in starts]
        total = np.zeros(places[-1].stop)
        for place in places:
            total[place] += weights
        shares_NP = np.stack([weights / total[place] for place in places], dtype=np.float32)
        return cls(tuple(starts), patch, shares_NP)

    def span(self, index: int, box: VoxelRange) -> VoxelRange:
        """The voxels of the box that a window holds."""
        start = self.starts[index]
        return max(start, box[0]), min(start + self.patch, box[1])


@dataclass(frozen=True)
class WindowGrid:
    """The windows over a box of a volume."""

    box: Box
    axes: tuple[AxisWindows, AxisWindows, AxisWindows]

    @classmethod
    def over(
        cls, box: Box, shape_DHW: Sequence[int], patch_DHW: Sequence[int], overlap: float
    ) -> WindowGrid:
        """See `AxisWindows.over`."""
        depth, height, width = (
            AxisWindows.over(*sizes, overlap)
            for sizes in zip(box, shape_DHW, patch_DHW, strict=True)
        )
        return cls(box, (depth, height, width))

    def __len__(self) -> int:
        depth, height, width = (len(axis.starts) for axis in self.axes)
        return depth * height * width

    def __iter__(self) -> Iterator[Window]:
        """The windows, along W first and along D last."""
        for indices in product(*(range(len(axis.starts)) for axis in self.axes)):
            yield Window(self, indices)


@dataclass(frozen=True)
class Window:
    """One window of a grid."""

    grid: WindowGrid
    indices: tuple[int, ...]

    @property
    def starts(self) -> tuple[int, ...]:
        """Its first voxel; below 0 where it begins before the volume."""
        return tuple(a.starts[i] for a, i in zip(self.grid.axes, self.indices, strict=True))

    @property
    def spans(self) -> list[VoxelRange]:
        """The voxels of the box that it holds."""
        grid = self.grid
        return [
            axis.span(index, box)
            for axis, index, box in zip(grid.axes, self.indices, grid.box, strict=True)
        ]

    def shares(self) -> list[npt.NDArray[np.float32]]:
        """Its share along each axis; at a voxel it is the product of the three."""
        return [a.shares_NP[i] for a, i in zip(self.grid.axes, self.indices, strict=True)]

    def cut_from(
        self,
        image_CDHW: npt.NDArray[np.generic],
        extend: Literal["edge", "constant"] = "edge",
    ) -> npt.NDArray[np.float32]:
        """What it shows of an image, which is extended by its outermost voxels, or by zeros."""
        inside, padding = [slice(None)], [(0, 0)]
        for start, axis, size in zip(
            self.starts, self.grid.axes, image_CDHW.shape[1:], strict=True
        ):
            end = start + axis.patch
            inside.append(slice(max(start, 0), min(end, size)))
            padding.append((max(-start, 0), max(end - size, 0)))
        window_CDHW = image_CDHW[tuple(inside)].astype(np.float32)
        return np.pad(window_CDHW, padding, extend) if np.any(padding) else window_CDHW
