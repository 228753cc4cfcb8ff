"""An image as nnU-Net prepares it: cropped, normalised, then resampled.

The order and the interpolation are nnU-Net's (nnunetv2/preprocessing), because a network computes
other labels from images that are prepared otherwise. Its networks also see the axes as a file
stores them, whatever its affine says, in an order that its plans give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from segresmamba.data.preprocessing import NnUNetSteps, Normalisation, Preprocessing
from segresmamba.data.records import Spacing
from segresmamba.data.volumes.geometry import Affine, axis_sizes
from segresmamba.data.volumes.resampling import AxisMap, GridTransform, nonzero_box

_THIN = 3.0
"""How much larger the largest voxel side is than the smallest where one axis is kept apart."""
_EPSILON = 1e-8

Image = npt.NDArray[Any]


class ApartTransform(GridTransform):
    """Interpolates along all axes but one, along which the nearest value is taken."""

    axis: int

    def way_back(self) -> list[AxisMap]:
        """As `GridTransform.way_back`."""
        axes = super().way_back()
        below, above, share = axes[self.axis]
        nearest = np.where(share < 0.5, below, above)
        axes[self.axis] = AxisMap(nearest, nearest, np.zeros_like(share))
        return axes


def seen_affine(affine: Affine, steps: NnUNetSteps) -> Affine:
    """The affine by which the RAS grid of a file has the axes that the network saw.

    Args:
        affine: That of the file, 4x4, voxel (x, y, z) to RAS mm.
        steps: How the network saw images.
    """
    base = np.diag([*axis_sizes(affine), 1.0]) if steps.as_stored else affine
    # Row 2 is superior, which the first axis (D) follows: it gets the axis that comes first.
    rows = [2 - axis for axis in steps.transpose]
    return base[[rows[2], rows[1], rows[0], 3]]


def prepare(
    channels: Sequence[Image], spacing_mm: Spacing, wanted: Preprocessing
) -> tuple[list[Image], GridTransform]:
    """Crop, normalise and resample the channels of a case.

    Args:
        channels: On the network's axes, (D, H, W) each; some voxel is not 0.
        spacing_mm: Voxel size along these axes.
        wanted: Has `nnunet`, and the voxel size of the result.
    """
    assert wanted.nnunet is not None
    depth, height, width = channels[0].shape
    box = nonzero_box(channels)
    boxed = [channel[tuple(slice(*span) for span in box)] for channel in channels]
    sizes = boxed[0].shape
    target_mm = wanted.spacing_mm or spacing_mm
    # From the voxel sizes, and rounded as nnU-Net rounds.
    shape = [
        max(1, round(here / there * size))
        for here, there, size in zip(spacing_mm, target_mm, sizes, strict=True)
    ]
    apart = thin_axis(spacing_mm, target_mm)
    inside = None
    if any(wanted.nnunet.masked):
        inside = ndimage.binary_fill_holes(np.any([one != 0 for one in boxed], axis=0))
    masked = wanted.nnunet.masked or (False,) * len(boxed)
    prepared = [
        resample(normalise(channel, kind, inside if mask else None), shape, apart)
        for channel, kind, mask in zip(boxed, wanted.normalisation, masked, strict=True)
    ]
    zoom_d, zoom_h, zoom_w = (size / new for size, new in zip(sizes, shape, strict=True))
    transform = GridTransform(
        full_DHW=(depth, height, width),
        box_DHW=box,
        shape_DHW=(shape[0], shape[1], shape[2]),
        zoom_DHW=(zoom_d, zoom_h, zoom_w),
    )
    if apart is None:
        return prepared, transform
    return prepared, ApartTransform(**transform.model_dump(), axis=apart)


def normalise(channel_DHW: Image, kind: Normalisation, inside_DHW: Image | None) -> Image:
    """Normalise one channel as nnU-Net does.

    Args:
        channel_DHW: Intensities of the box around what is not 0.
        kind: One of nnU-Net's schemes; ct has its numbers from the foreground of all cases.
        inside_DHW: For zscore, the voxels that count; the others become 0.
    """
    x_DHW = channel_DHW.astype(np.float32)
    match kind.kind:
        case "zscore" if inside_DHW is not None:
            values = x_DHW[inside_DHW]
            x_DHW[inside_DHW] = (values - values.mean()) / max(values.std(), _EPSILON)
        case "zscore":
            mean, std = x_DHW.mean(), x_DHW.std()
            x_DHW -= mean
            x_DHW /= max(std, _EPSILON)
        case "ct":
            np.clip(x_DHW, kind.low, kind.high, out=x_DHW)
            x_DHW -= kind.mean
            x_DHW /= max(kind.std, _EPSILON)
        case "rescale01":
            x_DHW -= x_DHW.min()
            x_DHW /= max(x_DHW.max(), _EPSILON)
        case "rgb":
            x_DHW /= 255.0
        case "stored":
            pass
    return x_DHW


def thin_axis(spacing_mm: Sequence[float], target_mm: Sequence[float]) -> int | None:
    """The axis of thick slices, along which values are taken and not interpolated."""
    for sizes in (spacing_mm, target_mm):
        if max(sizes) / min(sizes) > _THIN:
            (thick,) = np.nonzero(max(sizes) / np.array(sizes) == 1)
            return int(thick[0]) if len(thick) == 1 else None
    return None


def resample(x_DHW: Image, shape: Sequence[int], apart: int | None) -> Image:
    """Interpolate by cubic splines; along the axis kept apart the nearest value is taken."""
    if tuple(shape) == x_DHW.shape:
        return x_DHW
    if apart is None:
        return _cubic(x_DHW, shape)
    slices = np.moveaxis(x_DHW, apart, 0)
    inner = [size for axis, size in enumerate(shape) if axis != apart]
    if list(slices.shape[1:]) != inner:
        slices = np.stack([_cubic(slice_HW, inner) for slice_HW in slices])
    count = shape[apart]
    places = len(slices) / count * (np.arange(count) + 0.5) - 0.5
    nearest = np.clip(np.floor(places + 0.5), 0, len(slices) - 1).astype(int)
    return np.ascontiguousarray(np.moveaxis(slices[nearest], 0, apart))


def _cubic(x: Image, shape: Sequence[int]) -> Image:
    zoom = np.divide(shape, x.shape)
    out = ndimage.zoom(x.astype(np.float64), zoom, order=3, mode="nearest", grid_mode=True)
    # Splines overshoot at edges; nnU-Net keeps to the range of the image.
    result: Image = np.clip(out, x.min(), x.max()).astype(np.float32)
    return result
