"""The grid that a case is stored on where a policy crops or resamples it, and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from segresmamba.data.blocks import block
from segresmamba.data.policy import Record, Spacing

if TYPE_CHECKING:  # a reader of crops needs no nibabel
    from segresmamba.data.geometry import Affine

Size3 = tuple[int, int, int]
Span = tuple[int, int]

_SLAB = 16  # planes that are resampled at once


class Refit(Record):
    """How a stored grid lies in the RAS grid of the files: a box of it, then other voxels.

    The stored voxels have exactly the size that was asked for, and the middle of the box is the
    middle of the stored grid; so its edges move by less than half a voxel.
    """

    full_DHW: Size3
    """Shape of the files' RAS grid."""
    box_DHW: tuple[Span, Span, Span]
    """First voxel of the box, and the one behind its last."""
    shape_DHW: Size3
    """Of the stored grid."""
    zoom_DHW: tuple[float, float, float]
    """Size of a stored voxel over that of a file's."""

    @property
    def _box(self) -> tuple[slice, ...]:
        return tuple(slice(*span) for span in self.box_DHW)

    @property
    def _box_shape(self) -> Size3:
        depth, height, width = (end - start for start, end in self.box_DHW)
        return depth, height, width

    @property
    def resamples(self) -> bool:
        """Whether voxels change their size, so that not every label comes back as it was."""
        return self.zoom_DHW != (1.0, 1.0, 1.0)

    def affine(self, full: Affine) -> Affine:
        """Of the stored grid, given that of the files' RAS grid (both of (x, y, z) order)."""
        zoom = np.array(self.zoom_DHW)
        start = np.array([first for first, _ in self.box_DHW])
        offset = start + _offset(self._box_shape, self.shape_DHW, zoom)
        inner = np.eye(4)
        inner[:3, :3] = np.diag(zoom[::-1])
        inner[:3, 3] = offset[::-1]
        return full @ inner

    def boxed(self, volume_DHW: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What lies in the box: a view."""
        return volume_DHW[self._box]

    def image(self, channel_DHW: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One channel on the stored grid: interpolated to float32, or a view of the box."""
        boxed = self.boxed(channel_DHW)
        if not self.resamples:
            return boxed
        return _interpolate(boxed, self.shape_DHW, self.zoom_DHW)

    def label(self, label_DHW: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A label on the stored grid."""
        boxed = self.boxed(label_DHW)
        return _resample_label(boxed, self.shape_DHW, self.zoom_DHW) if self.resamples else boxed

    def undo(self, label_DHW: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A label of the stored grid on the files' RAS grid; outside of the box it is 0."""
        back = 1 / np.array(self.zoom_DHW)
        if self.resamples:
            label_DHW = _resample_label(label_DHW, self._box_shape, back)
        full_DHW = np.zeros(self.full_DHW, label_DHW.dtype)
        full_DHW[self._box] = label_DHW
        return full_DHW


def make_refit(
    channels: Sequence[npt.NDArray[Any]],
    spacing_mm: Spacing,
    wanted_mm: Spacing | None,
    *,
    crop: bool,
) -> Refit | None:
    """What a policy does to the grid of a case; None if it leaves it alone.

    Args:
        channels: Of the image, (D, H, W) each, on its RAS grid.
        spacing_mm: Voxel size of that grid along (D, H, W).
        wanted_mm: Voxel size to resample to, or None.
        crop: Whether to cut to the box around the voxels that are not zero in some channel.
    """
    depth, height, width = full = channels[0].shape
    box = nonzero_box(channels) if crop else ((0, depth), (0, height), (0, width))
    sizes = np.subtract(*np.transpose(box)[::-1])
    zoom = np.ones(3) if wanted_mm is None else np.array(wanted_mm) / spacing_mm
    zoom[np.isclose(zoom, 1, rtol=1e-4)] = 1  # headers are float32
    shape = np.maximum(1, np.rint(sizes / zoom)).astype(int)
    if tuple(shape) == full and (zoom == 1).all():
        return None
    return Refit(full_DHW=full, box_DHW=box, shape_DHW=shape.tolist(), zoom_DHW=zoom.tolist())


def nonzero_box(channels: Sequence[npt.NDArray[Any]]) -> tuple[Span, Span, Span]:
    """The smallest box that holds the non-zero voxels of all channels."""
    spans = []
    for axis in range(3):
        others = tuple({0, 1, 2} - {axis})
        used = np.any([channel.any(axis=others) for channel in channels], axis=0)
        (places,) = used.nonzero()
        spans.append((int(places[0]), int(places[-1]) + 1))
    depth, height, width = spans
    return depth, height, width


def _offset(here: Sequence[int], there: Sequence[int], zoom: npt.ArrayLike) -> npt.NDArray[Any]:
    """Where voxel 0 of a grid lies in another with the same middle and smaller voxels by `zoom`."""
    offset: npt.NDArray[Any] = (np.array(here) - np.array(zoom) * (np.array(there) - 1) - 1) / 2
    return offset


def _interpolate(
    volume_DHW: npt.NDArray[Any], shape_DHW: Sequence[int], zoom: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    out_DHW = block(tuple(shape_DHW), np.float32)
    for slab_DHW, part_DHW, start in _slabs(volume_DHW, out_DHW, np.array(zoom)):
        slab_DHW[:] = _linear(part_DHW, slab_DHW.shape, zoom, start)
    return out_DHW


def _resample_label(
    label_DHW: npt.NDArray[Any], shape_DHW: Sequence[int], zoom: npt.ArrayLike
) -> npt.NDArray[Any]:
    """Each voxel gets the class with the largest share, interpolated linearly as nnU-Net does."""
    out_DHW = block(tuple(shape_DHW), label_DHW.dtype)
    for slab_DHW, part_DHW, start in _slabs(label_DHW, out_DHW, np.array(zoom)):
        values = np.unique(part_DHW)
        slab_DHW[:] = values[0]
        if len(values) == 1:
            continue
        most = np.full(slab_DHW.shape, -1, np.float32)
        for value in values:
            share = _linear(part_DHW == value, slab_DHW.shape, zoom, start)
            better = share >= most  # where two classes share a voxel, nnU-Net keeps the higher
            slab_DHW[better], most[better] = value, share[better]
    return out_DHW


def _slabs(
    source_DHW: npt.NDArray[Any], out_DHW: npt.NDArray[Any], zoom: npt.NDArray[Any]
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]]:
    """A few planes of the output, the planes that they depend on, and where its voxel 0 is there.

    A few at a time, so that little memory is needed beside the two volumes.
    """
    offset = _offset(source_DHW.shape, out_DHW.shape, zoom)
    last = len(source_DHW) - 1
    for first in range(0, len(out_DHW), _SLAB):
        slab_DHW = out_DHW[first : first + _SLAB]
        low = offset[0] + zoom[0] * first
        high = low + zoom[0] * (len(slab_DHW) - 1)
        start = min(max(int(low), 0), last)
        yield (
            slab_DHW,
            source_DHW[start : max(int(np.ceil(high)), start) + 1],
            np.array([low - start, *offset[1:]]),
        )


def _linear(
    volume: npt.NDArray[Any], shape: Sequence[int], zoom: npt.ArrayLike, start: npt.NDArray[Any]
) -> npt.NDArray[np.float32]:
    """Voxel o of the result is voxel `start + zoom * o`; the border goes on for ever.

    Axis by axis: eight times as fast as scipy.ndimage, which does not use that axes stay axes.
    """
    out = volume
    steps = np.array(zoom)
    for axis, size in enumerate(shape):
        last = volume.shape[axis] - 1
        place = np.clip(start[axis] + steps[axis] * np.arange(size), 0, last)
        below = place.astype(np.intp)
        share = (place - below).astype(np.float32).reshape([-1, *[1] * (2 - axis)])
        lower = out.take(below, axis).astype(np.float32)
        lower += (out.take(np.minimum(below + 1, last), axis) - lower) * share
        out = lower
    return out
