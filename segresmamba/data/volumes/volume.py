"""Files of one case -> arrays on the RAS grid, everything doubtful refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation
from scipy.ndimage import affine_transform

from segresmamba.data.preprocessing import Preprocessing
from segresmamba.data.records import ChannelStatistics
from segresmamba.data.volumes import geometry
from segresmamba.data.volumes.geometry import Affine, OriginalGrid
from segresmamba.data.volumes.mapped_arrays import block
from segresmamba.data.volumes.resampling import GridTransform, make_refit
from segresmamba.data.volumes.statistics import channel_statistics
from segresmamba.data.volumes.voxel_file import Planes, VoxelFile, open_voxels
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)

_GRID_TOLERANCE_VOXELS = 0.01
"""Header affines are float32: the same grid written by two tools differs by far less than this."""
_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class Volume:
    """The image of one case, on its RAS grid or what a policy made of it."""

    image_CDHW: npt.NDArray[Any]
    """int16 where all channels are integers that fit, else float32."""
    affine: Affine
    original: OriginalGrid
    """Writes labels (of uint8) back into the grid of the files."""
    statistics: tuple[ChannelStatistics, ...]
    """Intensities of each channel."""
    refit: GridTransform | None = None
    """What a policy did to the RAS grid of the files."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along (D, H, W)."""
        return geometry.spacing_mm(self.affine)

    def restore_label(self, label_DHW: npt.NDArray[Any], dtype: npt.DTypeLike) -> Any:
        """A nibabel image of a label of this grid, in the geometry of the first file."""
        full_DHW = self.refit.undo(label_DHW) if self.refit else label_DHW
        return OriginalGrid.from_header(self.original.header, dtype).restore(full_DHW)


def read_volume(
    images: Sequence[Path],
    *,
    stacked_channels: int = 0,
    resample_mismatched: bool = False,
    preprocessing: Preprocessing | None = None,
) -> Volume:
    """Read the image files of a case, one per channel.

    Besides the volume that it returns it takes at most the memory of one more channel.

    Args:
        images: NIfTI files in the dataset's channel order.
        stacked_channels: If not 0, `images` is one file with so many channels along a fourth axis.
        resample_mismatched: Put channels of another grid onto the first's instead of refusing them.
        preprocessing: Crop and voxel size of the result; unset leaves the grid as it is.

    Raises:
        DataError: For a file that is missing, damaged, not 3D, without a usable affine, with NaN or
            infinite voxels, without any non-zero voxel, or on another grid than the first.
    """
    first = open_voxels(images[0], stacked_channels)
    original = OriginalGrid.from_header(_header_3d(first), np.uint8)
    others = (open_voxels(path) for path in images[1:])
    channels: list[npt.NDArray[Any]] = []
    for file in chain([first], others):
        there = _onto(file, original, order=1) if resample_mismatched else file
        _require_same_grid(there, original)
        channels += _read_channels(there)
    _, affine = geometry.ras_grid(first.shape_XYZ, first.affine)
    wanted = preprocessing or Preprocessing()
    refit = make_refit(channels, geometry.spacing_mm(affine), wanted.spacing_mm, crop=wanted.crop)
    if refit is not None:
        affine = refit.affine(affine)
        for number in range(len(channels)):
            channels[number] = refit.image(channels[number])
            if not channels[number].any():
                raise _nothing(images[min(number, len(images) - 1)])
    statistics = tuple(channel_statistics(channel_DHW) for channel_DHW in channels)
    return Volume(_stack(channels), affine, original, statistics, refit)


def read_label(
    path: Path,
    labels: dict[str, int],
    grid: OriginalGrid,
    *,
    renumbered: dict[int, int] | None = None,
    resample_mismatched: bool = False,
) -> tuple[npt.NDArray[Any], OriginalGrid]:
    """Read a label map.

    Args:
        path: NIfTI file with integers (their dtype may be a floating one).
        labels: Declared names and values.
        grid: Of the image, which the label must share.
        renumbered: Value in the file to declared value, where they differ.
        resample_mismatched: Put a label of another grid onto the image's instead of refusing it.

    Returns:
        (D, H, W) array of uint8, int16 where values exceed 255, on the RAS grid; and its original
        (the image's with the label's dtype if it was resampled).

    Raises:
        DataError: As `read_volume`; also for values that are no integers or not declared.
    """
    label = open_voxels(path)
    if resample_mismatched:
        label = _onto(label, grid, order=0)
    _require_same_grid(label, grid)
    highest = max(labels.values())
    dtype = np.uint8 if highest <= np.iinfo(np.uint8).max else np.int16
    shape_DHW, _ = geometry.ras_grid(label.shape_XYZ, label.affine)
    label_DHW = block(shape_DHW, dtype)
    label_XYZ = geometry.as_filed(label_DHW, label.affine)
    undeclared: set[float] = set()
    odd: list[float] = []
    for index, plane_XY in enumerate(label.planes()):
        if plane_XY.dtype.kind == "f":
            odd += plane_XY[plane_XY != np.rint(plane_XY)].tolist()
        values_XY = _renumber(plane_XY, renumbered or {}, path)
        if values_XY.min() < 0 or values_XY.max() > highest:
            found = np.unique(values_XY)
            undeclared |= set(found[(found < 0) | (found > highest)].tolist())
        with np.errstate(invalid="ignore"):  # refused below
            label_XYZ[..., index] = values_XY
    if odd:
        raise DataError(
            "a label has values that are no integers",
            where=path,
            got=f"{len(odd)} voxels, such as {odd[0]:g}",
            remedy="export the label again with nearest-neighbour interpolation",
        )
    if undeclared:
        raise DataError(
            "a label has undeclared values",
            where=path,
            got=", ".join(f"{value:g}" for value in sorted(undeclared)[:10]),
            remedy=f"declared: {labels}; declare the value or correct the file",
        )
    return label_DHW, OriginalGrid.from_header(label.header, label.header.get_data_dtype())


def _header_3d(file: VoxelFile) -> Any:
    header = file.header.copy()
    header.set_data_shape(file.shape_XYZ)
    return header


def _read_channels(file: VoxelFile) -> list[npt.NDArray[Any]]:
    """The (D, H, W) channels of a file: one, or those along its fourth axis."""
    planes = file.planes()
    channels = [_read_channel(file, planes) for _ in range(*file.shape[3:] or (1,))]
    for _ in planes:  # there is none, but only now is the end of the file checked
        pass
    return channels


def _read_channel(file: VoxelFile, planes: Planes) -> npt.NDArray[Any]:
    """One channel: int16 if its voxels are integers that fit, else float32."""
    shape_DHW, _ = geometry.ras_grid(file.shape_XYZ, file.affine)
    channel_DHW = block(shape_DHW, np.int16 if file.integers else np.float32)
    low, high, wrong = np.inf, -np.inf, 0
    for index, plane_XY in zip(range(file.shape[2]), planes, strict=False):
        low, high = min(low, plane_XY.min()), max(high, plane_XY.max())
        if channel_DHW.dtype == np.int16 and not (low >= _INT16.min and high <= _INT16.max):
            channel_DHW = _as_float(channel_DHW)
        geometry.as_filed(channel_DHW, file.affine)[..., index] = plane_XY
        if plane_XY.dtype.kind == "f":
            wrong += plane_XY.size - int(np.isfinite(plane_XY).sum())
    if wrong:
        raise DataError(
            "voxels are NaN or infinite",
            where=file.path,
            got=f"{wrong} of {channel_DHW.size} voxels",
            remedy="find out what wrote them; if they mean 'outside', set them to 0",
        )
    if low == high == 0:
        raise _nothing(file.path)
    return channel_DHW


def _as_float(channel_DHW: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    wide_DHW = block(channel_DHW.shape, np.float32)
    wide_DHW[...] = channel_DHW
    return wide_DHW


def _nothing(path: Path) -> DataError:
    return DataError(
        "an image has no non-zero voxel",
        where=path,
        got="0 everywhere",
        remedy="export it again, or remove the case",
    )


def _stack(channels: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One array of all; each channel is given up once it has been copied."""
    if len(channels) == 1:
        return channels[0][None]
    # One float32 channel makes all of them float32.
    image_CDHW = block((len(channels), *channels[0].shape), np.result_type(*channels))
    for place_DHW in image_CDHW:
        place_DHW[:] = channels.pop(0)
    return image_CDHW


def _renumber(
    values_XY: npt.NDArray[Any], renumbered: dict[int, int], path: Path
) -> npt.NDArray[Any]:
    """Give voxels their declared values; what is free in the files only must not occur there."""
    taken = [new for new in renumbered.values() if new not in renumbered]
    if any((values_XY == value).any() for value in taken):
        raise DataError(
            "a label has undeclared values",
            where=path,
            got=", ".join(map(str, taken)),
            remedy=f"the format writes {renumbered} (file: store); say another with --format",
        )
    out = values_XY.copy() if renumbered else values_XY
    for old, new in renumbered.items():
        out[values_XY == old] = new
    return out


def _onto(file: VoxelFile, grid: OriginalGrid, *, order: int) -> VoxelFile:
    """The same volume on another grid, interpolated; itself where the grids agree."""
    try:
        _require_same_grid(file, grid)
    except DataError as mismatch:
        logger.warning("%s is resampled: %s", file.path, mismatch.got)
    else:
        return file
    dtype = np.dtype(np.float32) if order else file.dtype
    to_file = np.linalg.inv(file.affine) @ grid.affine
    matrix, offset = to_file[:3, :3], to_file[:3, 3]

    def planes() -> Planes:
        data_XYZ = block(file.shape_XYZ, dtype)
        for index, plane_XY in enumerate(file.planes()):
            data_XYZ[..., index] = plane_XY
        *size_XY, size_Z = grid.shape_XYZ
        for z in range(size_Z):  # one at a time, so that the result is not there twice
            start = offset + matrix[:, 2] * z
            there = affine_transform(data_XYZ, matrix, start, (*size_XY, 1), order=order)
            yield there[..., 0]

    return replace(
        file,
        header=OriginalGrid.from_header(grid.header, file.header.get_data_dtype()).header,
        affine=grid.affine,
        shape=grid.shape_XYZ,
        integers=file.integers and order == 0,
        dtype=dtype,
        _read=planes,
    )


def _require_same_grid(file: VoxelFile, grid: OriginalGrid) -> None:
    shape_XYZ = file.shape_XYZ
    if shape_XYZ != grid.shape_XYZ:
        raise DataError(
            "two files of a case have different shapes",
            where=file.path,
            got=f"{shape_XYZ}, and {grid.shape_XYZ} in the case's first image",
            remedy="resample one onto the other's grid (labels with nearest neighbour)",
        )
    apart = geometry.corner_distance_voxels(shape_XYZ, grid.affine, file.affine)
    same_axes = (io_orientation(file.affine) == io_orientation(grid.affine)).all()
    if apart > _GRID_TOLERANCE_VOXELS or not same_axes:
        raise DataError(
            "two files of a case have different affines",
            where=file.path,
            got=f"corners up to {apart:.3g} voxels from those of the case's first image",
            remedy="resample one onto the other's grid, or copy the right header to both",
        )
