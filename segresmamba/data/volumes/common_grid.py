"""The files of a case share one grid: is it that of a file, and how does a file get it?"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from scipy.ndimage import affine_transform

from segresmamba.data.volumes import geometry
from segresmamba.data.volumes.geometry import OriginalGrid
from segresmamba.data.volumes.mapped_arrays import mapped_zeros
from segresmamba.data.volumes.voxel_file import Planes, VoxelFile
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)

# Header affines are float32: the same grid written by two tools differs by far less than this.
_ROUNDING_VOXELS = 0.01
# Some tools round the voxel size to four digits: half a digit of 0.5 mm, over 512 voxels, is a
# twentieth of a voxel. More than this is another grid.
_GRID_TOLERANCE_VOXELS = 0.1
FIRST = "the case's first image"
"""What usually has the grid, for errors."""


def on_grid(
    file: VoxelFile, grid: OriginalGrid, other: str, *, resample: bool, order: int
) -> VoxelFile:
    """The file itself if it has this grid, else the file resampled onto it.

    Args:
        file: A file of the case.
        grid: The grid that all files of the case have.
        other: What has that grid, for errors.
        resample: Whether a file with another grid may be resampled.
        order: 0 takes the nearest voxel, which keeps the values of a label; 1 is linear.

    Raises:
        DataError: If the grids differ and the file may not be resampled.
    """
    mismatch = _mismatch(file, grid, other)
    if mismatch is None:
        return file
    if not resample:
        raise mismatch
    logger.warning("%s is resampled: %s", file.path, mismatch.got)
    dtype = np.dtype(np.float32) if order else file.dtype
    to_file = np.linalg.inv(file.affine) @ grid.affine
    matrix, offset = to_file[:3, :3], to_file[:3, 3]

    def planes() -> Planes:
        data_XYZ = mapped_zeros(file.shape_XYZ, dtype)
        for index, plane_XY in enumerate(file.planes()):
            data_XYZ[..., index] = plane_XY
        *size_XY, size_Z = grid.shape_XYZ
        for z in range(size_Z):  # plane by plane, so that the result is not in memory twice
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


def _mismatch(file: VoxelFile, grid: OriginalGrid, other: str) -> DataError | None:
    """How the grid of a file differs from that of another, as an error; None if it does not.

    They are compared on the RAS grid: the same voxels in another order of axes are the same grid.
    """
    shape_DHW, affine = geometry.ras_grid(file.shape_XYZ, file.affine)
    expected_DHW, expected = geometry.ras_grid(grid.shape_XYZ, grid.affine)
    if shape_DHW != expected_DHW:
        return DataError(
            "two files of a case have different shapes",
            where=file.path,
            got=f"{file.shape_XYZ}, and {grid.shape_XYZ} in {other}",
            remedy="resample one onto the other's grid (labels with nearest neighbour)",
        )
    apart = geometry.corner_distance_voxels(shape_DHW[::-1], expected, affine)
    got = f"corners up to {apart:.3g} voxels from those of {other}"
    if apart > _GRID_TOLERANCE_VOXELS:
        return DataError(
            "two files of a case have different affines",
            where=file.path,
            got=got,
            remedy="resample one onto the other's grid; copy a header only if you know that the "
            "voxels are in the same order and that one of the two headers is wrong",
        )
    if apart > _ROUNDING_VOXELS:
        logger.warning("%s: %s; taken as rounding of its header", file.path, got)
    return None
