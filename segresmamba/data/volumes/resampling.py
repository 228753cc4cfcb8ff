"""Crop and resample a case to the grid that a policy asks for, and turn its labels back.

Volumes are resampled plane by plane, so that little memory is needed beside source and result, and
axis by axis: that is eight times as fast as scipy.ndimage, which does not use that axes stay axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from segresmamba.data.records import Spacing, StoreRecord
from segresmamba.data.volumes.mapped_arrays import free_before, mapped_zeros

if TYPE_CHECKING:  # a reader of crops needs no nibabel
    from segresmamba.data.volumes.geometry import Affine

Size3 = tuple[int, int, int]
VoxelRange = tuple[int, int]


class GridTransform(StoreRecord):
    """How a stored grid lies in the RAS grid of the files: cut to a box, then resampled.

    The stored voxels have exactly the size that was asked for. The middle of the box is the middle
    of the stored grid, so the edges move by less than half a voxel.
    """

    full_DHW: Size3
    """Shape of the files' RAS grid."""
    box_DHW: tuple[VoxelRange, VoxelRange, VoxelRange]
    """Along each axis the first voxel of the box, and the one after its last."""
    shape_DHW: Size3
    """Shape of the stored grid."""
    zoom_DHW: tuple[float, float, float]
    """Size of a stored voxel divided by that of a voxel in the files."""

    @property
    def _box(self) -> tuple[slice, ...]:
        return tuple(slice(*span) for span in self.box_DHW)

    @property
    def _box_shape(self) -> Size3:
        depth, height, width = (end - start for start, end in self.box_DHW)
        return depth, height, width

    @property
    def resamples(self) -> bool:
        """Whether voxels change their size: then a label does not come back exactly."""
        return self.zoom_DHW != (1.0, 1.0, 1.0)

    def affine(self, full: Affine) -> Affine:
        """Affine of the stored grid, given that of the files' RAS grid, in (x, y, z) order."""
        zoom = np.array(self.zoom_DHW)
        start = np.array([first for first, _ in self.box_DHW])
        offset = start + _offset(self._box_shape, self.shape_DHW, zoom)
        inner = np.eye(4)
        inner[:3, :3] = np.diag(zoom[::-1])
        inner[:3, 3] = offset[::-1]
        return full @ inner

    def boxed(self, volume_DHW: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A view of what lies in the box."""
        return volume_DHW[self._box]

    def image(self, channel_DHW: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One channel on the stored grid: a view of the box, or interpolated to float32.

        Interpolation is linear along each axis. It uses up a channel from `mapped_zeros`: what has
        been read is given back to the system, so that source and result are not both held whole.
        """
        boxed_DHW = self.boxed(channel_DHW)
        if not self.resamples:
            return boxed_DHW
        out_DHW = mapped_zeros(self.shape_DHW, np.float32)
        depth, height, width = _axes(boxed_DHW.shape, self.shape_DHW, self.zoom_DHW)
        for plane_HW, below, above, share in zip(out_DHW, *depth, strict=True):
            free_before(boxed_DHW[below])
            plane_HW[:] = _plane(boxed_DHW[below], boxed_DHW[above], share, height, width)
        return out_DHW

    def label(self, label_DHW: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A label of the files' RAS grid on the stored grid."""
        boxed = self.boxed(label_DHW)
        return _resample_label(boxed, self.shape_DHW, self.zoom_DHW) if self.resamples else boxed

    def way_back(self) -> list[AxisMap]:
        """How each axis of the box in the files' grid is filled from the stored grid."""
        return _axes(self.shape_DHW, self._box_shape, [1 / zoom for zoom in self.zoom_DHW])

    def undo(self, label_DHW: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A label of the stored grid on the files' RAS grid; outside the box it is 0."""
        back = [1 / zoom for zoom in self.zoom_DHW]
        if self.resamples:
            label_DHW = _resample_label(label_DHW, self._box_shape, back)
        full_DHW = np.zeros(self.full_DHW, label_DHW.dtype)
        full_DHW[self._box] = label_DHW
        return full_DHW

    def undo_image(self, channel_DHW: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One channel of the stored grid on the files' RAS grid, for looking at.

        Outside the box it is 0. Where voxels have changed their size it has been interpolated
        twice, so it is smoother than the files.
        """
        if self.resamples:
            depth, height, width = self.way_back()
            planes = zip(*depth, strict=True)
            channel_DHW = np.stack(
                [
                    _plane(channel_DHW[below], channel_DHW[above], share, height, width)
                    for below, above, share in planes
                ]
            )
        full_DHW = np.zeros(self.full_DHW, channel_DHW.dtype)
        full_DHW[self._box] = channel_DHW
        return full_DHW


def grid_transform(
    channels: Sequence[npt.NDArray[Any]],
    spacing_mm: Spacing,
    wanted_mm: Spacing | None,
    *,
    crop: bool,
) -> GridTransform | None:
    """What a policy does to the grid of a case; None if the grid stays as it is.

    Args:
        channels: The image's channels on its RAS grid, (D, H, W) each.
        spacing_mm: Voxel size of that grid along (D, H, W).
        wanted_mm: Voxel size to resample to; None keeps it.
        crop: Whether to cut to the box around the voxels that are not zero in some channel.
    """
    depth, height, width = full = channels[0].shape
    box = nonzero_box(channels) if crop else ((0, depth), (0, height), (0, width))
    sizes = np.subtract(*np.transpose(box)[::-1])
    zoom = np.ones(3) if wanted_mm is None else np.array(wanted_mm) / spacing_mm
    # Headers are float32: equal spacings differ in their last digits.
    zoom[np.isclose(zoom, 1, rtol=1e-4)] = 1
    # At least one voxel, however thin the box is.
    shape = np.maximum(1, np.rint(sizes / zoom)).astype(int)
    if tuple(shape) == full and (zoom == 1).all():
        return None
    return GridTransform(
        full_DHW=full, box_DHW=box, shape_DHW=shape.tolist(), zoom_DHW=zoom.tolist()
    )


def nonzero_box(channels: Sequence[npt.NDArray[Any]]) -> tuple[VoxelRange, VoxelRange, VoxelRange]:
    """The smallest box that holds the non-zero voxels of all channels; empty if there are none."""
    depth, height, width = channels[0].shape
    used_D, used_HW = np.zeros(depth, bool), np.zeros((height, width), bool)
    for channel_DHW in channels:
        for place, plane_HW in enumerate(channel_DHW):
            found_HW = plane_HW != 0
            used_D[place] |= found_HW.any()
            used_HW |= found_HW
    return _span(used_D), _span(used_HW.any(axis=1)), _span(used_HW.any(axis=0))


def _span(used: Any) -> VoxelRange:
    """From the first True to after the last."""
    (places,) = used.nonzero()
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)


def _offset(here: Sequence[int], there: Sequence[int], zoom: npt.ArrayLike) -> npt.NDArray[Any]:
    """Where voxel 0 of grid `there` lies in grid `here`, whose voxels are `zoom` times smaller.

    Both grids have the same middle.
    """
    offset: npt.NDArray[Any] = (np.array(here) - np.array(zoom) * (np.array(there) - 1) - 1) / 2
    return offset


def _resample_label(
    label_DHW: npt.NDArray[Any], shape_DHW: Sequence[int], zoom: Sequence[float]
) -> npt.NDArray[Any]:
    """Give each voxel the class with the largest share, interpolated linearly as in nnU-Net."""
    out_DHW = mapped_zeros(tuple(shape_DHW), label_DHW.dtype)
    depth, height, width = _axes(label_DHW.shape, shape_DHW, zoom)
    for plane_HW, below, above, share in zip(out_DHW, *depth, strict=True):
        pair = label_DHW[below], label_DHW[above]
        values = np.unique(np.concatenate(pair))
        plane_HW[:] = values[0]
        if len(values) == 1:  # a plane of one class needs no interpolation
            continue
        most = np.full(plane_HW.shape, -1, np.float32)
        for value in values:
            amount = _plane(pair[0] == value, pair[1] == value, share, height, width)
            better = amount >= most  # of two classes with equal shares nnU-Net keeps the higher
            plane_HW[better], most[better] = value, amount[better]
    return out_DHW


class AxisMap(NamedTuple):
    """For each result voxel along an axis: its two source voxels, and the weight of the second."""

    below: npt.NDArray[np.intp]
    above: npt.NDArray[np.intp]
    share: npt.NDArray[np.float32]

    def interpolate(self, plane_HW: npt.NDArray[Any], axis: int) -> npt.NDArray[np.float32]:
        """A plane, interpolated along its axis 0 or 1."""
        lower = plane_HW.take(self.below, axis).astype(np.float32)
        share = self.share if axis == 1 else self.share[:, None]
        lower += (plane_HW.take(self.above, axis) - lower) * share
        return lower


def _axes(here: Sequence[int], there: Sequence[int], zoom: Sequence[float]) -> list[AxisMap]:
    """How to fill the axes of grid `there` from grid `here`; see `_offset`."""
    axes = []
    for first, step, size, count in zip(_offset(here, there, zoom), zoom, here, there, strict=True):
        # Places outside the source get the value at its border.
        place = np.clip(first + step * np.arange(count), 0, size - 1)
        below = place.astype(np.intp)
        share = (place - below).astype(np.float32)
        axes.append(AxisMap(below, np.minimum(below + 1, size - 1), share))
    return axes


def _plane(
    below_HW: npt.NDArray[Any],
    above_HW: npt.NDArray[Any],
    share: np.float32,
    height: AxisMap,
    width: AxisMap,
) -> npt.NDArray[np.float32]:
    """One plane of the result, from the two source planes beside it."""
    out_HW = below_HW.astype(np.float32)
    out_HW += (above_HW - out_HW) * share
    return width.interpolate(height.interpolate(out_HW, axis=0), axis=1)
