"""Probabilities on the network's grid, slab by slab, to labels on the files' grid.

Probabilities are interpolated linearly, and the label of a voxel is the most probable one there.
Where the eight voxels around a place have one label, it is that label: no weighted mean of them
prefers another. So probabilities are interpolated only for the few voxels at the border of a
structure, which takes a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segresmamba.data.volumes.resampling import AxisMap, GridTransform, VoxelRange
from segresmamba.inference.sliding_window import Brick
from segresmamba.inference.windows import Box
from segresmamba.task.classes import Classes

Labels = npt.NDArray[np.integer[Any]]


class ProbabilityPlanes(Protocol):
    """What takes the probabilities of the files' grid."""

    def __call__(self, depth: int, rows: slice, columns: slice, probabilities_KHW: Tensor) -> None:
        """Take those of a part of one plane; planes come in order, each at most once."""


class WayBack:
    """Fills a label of the files' RAS grid from slabs of probabilities.

    Args:
        transform: How the network's grid lies in the files' grid; None if it is the same.
        shape_DHW: Shape of the network's grid.
        box: The part of it that is computed. Voxels whose middle lies outside stay background.
        classes: What the probabilities mean.
        full_DHW: The label to fill, on the files' grid.
        probabilities: What takes probabilities; None computes none.
        logits: Whether the slabs hold logits, as nnU-Net interpolates them.
    """

    def __init__(
        self,
        transform: GridTransform | None,
        shape_DHW: Sequence[int],
        box: Box,
        classes: Classes,
        full_DHW: Labels,
        probabilities: ProbabilityPlanes | None = None,
        *,
        logits: bool = False,
    ) -> None:
        self._classes, self._full_DHW, self._probabilities = classes, full_DHW, probabilities
        self._decode = classes.decode if logits else classes.decode_probabilities
        self._logits = logits
        voxels = [np.arange(size) for size in shape_DHW]
        maps = (
            transform.way_back()
            if transform
            else [AxisMap(own, own, np.zeros(len(own), np.float32)) for own in voxels]
        )
        firsts = [first for first, _ in transform.box_DHW] if transform else [0, 0, 0]
        self._depth, self._rows, self._columns = (
            _Targets.of(*sizes) for sizes in zip(maps, box, shape_DHW, firsts, strict=True)
        )
        self._done = 0
        self._last_KHW = torch.empty(0)
        self._last_HW: Labels = np.empty(0, full_DHW.dtype)

    def add(self, first: int, slab_KDHW: Tensor, label_DHW: Labels) -> None:
        """Fill the planes that this slab completes.

        Args:
            first: Number of its first plane in the box; slabs come in order.
            slab_KDHW: Its probabilities.
            label_DHW: Its labels.
        """

        def plane(number: int) -> tuple[Tensor, Labels]:
            if number < first:
                return self._last_KHW, self._last_HW
            return slab_KDHW[:, number - first], label_DHW[number - first]

        # In the middle of a volume the device may have run out of memory.
        self._last_KHW = self._last_KHW.to(slab_KDHW.device)
        depth, end = self._depth, first + len(label_DHW)
        while self._done < len(depth.above) and depth.above[self._done] < end:
            target = self._done
            below, above = plane(int(depth.below[target])), plane(int(depth.above[target]))
            self._fill(depth.first + target, below, above, float(depth.share[target]))
            self._done += 1
        # A copy, so that the slab is freed.
        self._last_KHW, self._last_HW = slab_KDHW[:, -1].clone(), label_DHW[-1]

    def _fill(
        self, depth: int, below: tuple[Tensor, Labels], above: tuple[Tensor, Labels], share: float
    ) -> None:
        rows, columns = self._rows, self._columns
        least_HW = _around(np.minimum, below[1], above[1], rows, columns)
        mixed = np.nonzero(least_HW != _around(np.maximum, below[1], above[1], rows, columns))
        if len(mixed[0]):
            values_KN = torch.lerp(
                _at_points(below[0], mixed, rows, columns),
                _at_points(above[0], mixed, rows, columns),
                share,
            )
            labels_N = self._decode(values_KN[:, :, None, None])[:, 0, 0]
            least_HW[mixed] = labels_N.cpu().numpy()
        self._full_DHW[depth, rows.places, columns.places] = least_HW
        if self._probabilities is not None:
            values_KHW = _lerp(_lerp(torch.lerp(below[0], above[0], share), rows, 1), columns, 2)
            if self._logits:
                values_KHW = self._classes.probabilities(values_KHW)
            self._probabilities(depth, rows.places, columns.places, values_KHW)


@dataclass(frozen=True)
class _Targets:
    """The voxels of the files' grid along one axis that lie in the box, and what fills them."""

    first: int
    below: npt.NDArray[np.intp]
    above: npt.NDArray[np.intp]
    share: npt.NDArray[np.float32]

    @classmethod
    def of(cls, axis: AxisMap, box: VoxelRange, size: int, first: int) -> _Targets:
        """Those of an axis.

        Args:
            axis: What fills the axis from the whole network's grid.
            box: The part of that grid that is computed.
            size: Its size.
            first: Where the axis begins in the files' grid.
        """
        middles = axis.below + axis.share
        # What lies beyond the border of the network's grid is filled from the border, as in `undo`.
        inside = (middles >= box[0] - 0.5) | (box[0] == 0)
        inside &= (middles < box[1] - 0.5) | (box[1] == size)
        (places,) = inside.nonzero()
        below, above = (np.clip(side[places], box[0], box[1] - 1) - box[0] for side in axis[:2])
        start = first + int(places[0]) if len(places) else first
        return cls(start, below, above, axis.share[places])

    @property
    def places(self) -> slice:
        """Where they lie in the files' grid."""
        return slice(self.first, self.first + len(self.below))


def _around(
    least_or_most: np.ufunc, below_HW: Labels, above_HW: Labels, rows: _Targets, columns: _Targets
) -> Labels:
    """The least or greatest of the eight labels around each voxel of a plane."""
    plane_HW = least_or_most(below_HW, above_HW)
    plane_HW = least_or_most(plane_HW[rows.below], plane_HW[rows.above])
    around_HW: Labels = least_or_most(
        plane_HW.take(columns.below, 1), plane_HW.take(columns.above, 1)
    )
    return around_HW


def _at_points(
    plane_KHW: Tensor, points: tuple[npt.NDArray[Any], ...], rows: _Targets, columns: _Targets
) -> Tensor:
    """Values (K, N) of a plane, interpolated at some voxels of the files' grid."""
    (top, bottom, down), (left, right, across) = (
        [torch.from_numpy(part[point]).to(plane_KHW.device) for part in (t.below, t.above, t.share)]
        for t, point in zip((rows, columns), points, strict=True)
    )
    upper_KN = torch.lerp(plane_KHW[:, top, left], plane_KHW[:, top, right], across)
    lower_KN = torch.lerp(plane_KHW[:, bottom, left], plane_KHW[:, bottom, right], across)
    return torch.lerp(upper_KN, lower_KN, down)


def _lerp(plane_KHW: Tensor, targets: _Targets, axis: int) -> Tensor:
    """A plane interpolated along one axis."""
    below, above, share = (
        torch.from_numpy(part).to(plane_KHW.device)
        for part in (targets.below, targets.above, targets.share)
    )
    weights = share[:, None] if axis == 1 else share
    return torch.lerp(
        plane_KHW.index_select(axis, below), plane_KHW.index_select(axis, above), weights
    )


class Slabs:
    """Joins bricks of logits to slabs with the height and width of the box.

    Args:
        box: The part of the volume that is computed.
        values: What a slab has of each brick: its probabilities, or the logits themselves.
    """

    def __init__(self, box: Box, values: Callable[[Tensor], Tensor]) -> None:
        self._box, self._values = box, values
        self._slabs: dict[VoxelRange, Tensor] = {}
        self._missing: dict[VoxelRange, int] = {}

    def add(self, brick: Brick) -> Iterator[tuple[VoxelRange, Tensor]]:
        """Add a brick; yields the planes and values of the slab that it completes."""
        layer, (top, bottom), (left, right) = brick.box
        (first_H, end_H), (first_W, end_W) = self._box[1:]
        if layer not in self._slabs:
            channels, depth = brick.logits_KDHW.shape[:2]
            shape = channels, depth, end_H - first_H, end_W - first_W
            self._slabs[layer] = brick.computed(lambda logits: logits.new_empty(shape))
            self._missing[layer] = (end_H - first_H) * (end_W - first_W)
        rows, columns = (
            slice(top - first_H, bottom - first_H),
            slice(left - first_W, right - first_W),
        )
        self._slabs[layer][:, :, rows, columns] = brick.computed(self._values)
        self._missing[layer] -= (bottom - top) * (right - left)
        if not self._missing[layer]:
            yield layer, self._slabs.pop(layer)
