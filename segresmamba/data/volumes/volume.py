"""Read the files of one case into arrays on the RAS grid.

Whatever is doubtful is refused: missing slices, NaN, grids that differ, undeclared labels. A
network would learn from such data without any sign of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from segresmamba.data.preprocessing import Preprocessing
from segresmamba.data.records import ChannelStatistics, Spacing
from segresmamba.data.volumes import geometry, nnunet
from segresmamba.data.volumes.common_grid import FIRST, on_grid
from segresmamba.data.volumes.geometry import Affine, OriginalGrid
from segresmamba.data.volumes.mapped_arrays import mapped_zeros
from segresmamba.data.volumes.resampling import GridTransform, grid_transform
from segresmamba.data.volumes.statistics import channel_statistics
from segresmamba.data.volumes.voxel_file import Planes, VoxelFile, open_voxels
from segresmamba.errors import DataError

_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class Volume:
    """The image of one case, on its RAS grid or on the grid that a policy asks for."""

    image_CDHW: npt.NDArray[Any]
    """int16 where all channels are integers that fit, else float32."""
    affine: Affine
    original: OriginalGrid
    """Grid of the first file, with uint8 as its dtype."""
    statistics: tuple[ChannelStatistics, ...]
    """Intensities of each channel."""
    transform: GridTransform | None = None
    """What the policy did to the RAS grid of the files; None if the grid is as it was."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along (D, H, W)."""
        return geometry.spacing_mm(self.affine)

    def restore_label(self, label_DHW: npt.NDArray[Any], dtype: npt.DTypeLike) -> Any:
        """Turn a label on this grid into a nibabel image in the geometry of the first file."""
        full_DHW = self.transform.undo(label_DHW) if self.transform else label_DHW
        return self.original.for_labels(dtype).restore(full_DHW)


def read_volume(
    images: Sequence[Path],
    *,
    stacked_channels: int = 0,
    resample_mismatched: bool = False,
    preprocessing: Preprocessing | None = None,
) -> Volume:
    """Read the image files of a case, one per channel.

    It takes the memory of the volume that it returns and of at most one more channel.

    Args:
        images: Files in the dataset's channel order.
        stacked_channels: If not 0, `images` is one file with so many channels along a fourth axis.
        resample_mismatched: Resample channels on another grid than the first's onto that grid,
            instead of refusing them.
        preprocessing: Crop and voxel size of the result; None keeps the grid of the files.

    Raises:
        DataError: If a file is missing or damaged, is not 3D, has no usable affine, has NaN or
            infinite voxels or no non-zero voxel, or has another grid than the first.
    """
    first = open_voxels(images[0], stacked_channels)
    original = OriginalGrid.from_header(first.header, np.uint8)
    others = (open_voxels(path) for path in images[1:])
    preprocessing = preprocessing or Preprocessing()
    steps = preprocessing.seen
    channels: list[npt.NDArray[Any]] = []
    for file in chain([first], others):
        there = on_grid(file, original, FIRST, resample=resample_mismatched, order=1)
        if steps is not None:
            there = replace(there, affine=nnunet.seen_affine(there.affine, steps))
        planes = there.planes()
        channels += [_read_channel(there, planes) for _ in range(*there.shape[3:] or (1,))]
        next(planes, None)  # there is none left, but only now is the end of the file checked
    if steps is not None:
        original = original.seen_by(nnunet.seen_affine(first.affine, steps))
    _, affine = original.grid
    names = [str(images[min(number, len(images) - 1)]) for number in range(len(channels))]
    return _prepared(channels, names, affine, original, preprocessing)


def volume_of(
    image_CDHW: npt.NDArray[Any], spacing_mm: Spacing, preprocessing: Preprocessing
) -> Volume:
    """The volume of an array, as `read_volume` makes it of files.

    Args:
        image_CDHW: Intensities on a RAS grid; it is not changed.
        spacing_mm: Voxel size along (D, H, W).
        preprocessing: Crop and voxel size of the result.

    Raises:
        DataError: If it has another number of axes, no voxel, other voxels than finite numbers, or
            a channel that is zero everywhere; or if the voxel size is not three positive numbers.
    """
    if image_CDHW.ndim != 4 or not image_CDHW.size:
        raise DataError(
            "an image array must have the axes (C, D, H, W)",
            where="image",
            got=f"shape {image_CDHW.shape}",
            remedy="give one 3D volume for each channel",
        )
    if image_CDHW.dtype.kind not in "biuf":
        raise DataError(
            "voxels must be numbers",
            where="image",
            got=f"dtype {image_CDHW.dtype}",
            remedy="give integers or floats, a channel for each part of complex numbers",
        )
    sizes = np.asarray(spacing_mm)
    is_size = sizes.shape == (3,) and sizes.dtype.kind in "iuf" and np.isfinite(sizes).all()
    if not (is_size and (sizes > 0).all()):  # a negative one would mirror the label
        raise DataError(
            "the size of a voxel is three positive numbers",
            where="spacing_mm",
            got=spacing_mm,
            remedy="give mm along D, H and W, as in (3.0, 1.0, 1.0)",
        )
    not_finite = sum(int((~np.isfinite(plane)).sum()) for plane in image_CDHW)
    if not_finite:
        raise _not_finite("image", not_finite, image_CDHW.size)
    affine = np.diag([*spacing_mm[::-1], 1.0])
    grid = np.broadcast_to(np.uint8(0), image_CDHW.shape[:0:-1])
    original = OriginalGrid.from_header(nib.Nifti1Image(grid, affine).header, np.uint8)
    names = [f"image[{number}]" for number in range(len(image_CDHW))]
    for name, channel_DHW in zip(names, image_CDHW, strict=True):
        if not channel_DHW.any():
            raise _no_voxel(name)
    fits = image_CDHW.dtype.kind in "iu" and np.can_cast(image_CDHW.dtype, np.int16)
    channels = list(image_CDHW.astype(np.int16 if fits else np.float32, copy=False))
    if (steps := preprocessing.seen) is not None:
        original = original.seen_by(nnunet.seen_affine(affine, steps))
        channels = [channel_DHW.transpose(steps.transpose) for channel_DHW in channels]
        _, affine = original.grid
    return _prepared(channels, names, affine, original, preprocessing)


def _prepared(
    channels: list[npt.NDArray[Any]],
    names: Sequence[str],
    affine: Affine,
    original: OriginalGrid,
    preprocessing: Preprocessing,
) -> Volume:
    """Crop and resample channels of a RAS grid, whose names errors give."""
    spacing_mm = geometry.spacing_mm(affine)
    if preprocessing.nnunet is not None:
        statistics = tuple(channel_statistics(channel_DHW) for channel_DHW in channels)
        channels, there = nnunet.prepare(channels, spacing_mm, preprocessing)
        return Volume(_stack(channels), there.affine(affine), original, statistics, there)
    target_mm = preprocessing.target_mm(spacing_mm, names[0])
    transform = grid_transform(channels, spacing_mm, target_mm, crop=preprocessing.crop)
    if transform is not None:
        affine = transform.affine(affine)
        for number in range(len(channels)):
            channels[number] = transform.image(channels[number])
            if not channels[number].any():  # a few bright voxels may fall between larger ones
                raise _no_voxel(names[number])
    statistics = tuple(channel_statistics(channel_DHW) for channel_DHW in channels)
    return Volume(_stack(channels), affine, original, statistics, transform)


def _read_channel(file: VoxelFile, planes: Planes) -> npt.NDArray[Any]:
    """The next (D, H, W) channel: int16 if its voxels are integers that fit, else float32."""
    shape_DHW, _ = geometry.ras_grid(file.shape_XYZ, file.affine)
    channel_DHW = mapped_zeros(shape_DHW, np.int16 if file.integers else np.float32)
    low, high, not_finite = np.inf, -np.inf, 0
    # The range comes first: at its end, zip must not take a plane of the next channel.
    for index, plane_XY in zip(range(file.shape[2]), planes, strict=False):
        low, high = min(low, plane_XY.min()), max(high, plane_XY.max())
        # int16 takes half the memory of float32, so it is given up only for a plane that needs it.
        if channel_DHW.dtype == np.int16 and not (low >= _INT16.min and high <= _INT16.max):
            wide_DHW = mapped_zeros(shape_DHW, np.float32)
            wide_DHW[...] = channel_DHW
            channel_DHW = wide_DHW
        geometry.in_file_axes(channel_DHW, file.affine)[..., index] = plane_XY
        if plane_XY.dtype.kind == "f":
            not_finite += plane_XY.size - int(np.isfinite(plane_XY).sum())
    if not_finite:
        raise _not_finite(file.path, not_finite, channel_DHW.size)
    if low == high == 0:
        raise _no_voxel(file.path)
    return channel_DHW


def _not_finite(where: object, count: int, voxels: int) -> DataError:
    return DataError(
        "voxels are NaN or infinite",
        where=where,
        got=f"{count} of {voxels} voxels",
        remedy="find out what wrote them; if they mean 'outside', set them to 0",
    )


def _no_voxel(where: object) -> DataError:
    return DataError(
        "an image has no non-zero voxel",
        where=where,
        got="0 everywhere",
        remedy="export it again, or remove the case",
    )


def _stack(channels: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One array of all channels. Each channel is freed once it has been copied."""
    if len(channels) == 1:
        return channels[0][None]
    # One channel of float32 makes all of them float32: a store's image is one array.
    image_CDHW = mapped_zeros((len(channels), *channels[0].shape), np.result_type(*channels))
    for place_DHW in image_CDHW:
        place_DHW[:] = channels.pop(0)
    return image_CDHW
