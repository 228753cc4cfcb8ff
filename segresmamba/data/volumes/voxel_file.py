"""One file of voxels, read plane by plane.

A reader that copies planes to their place holds a volume once, and no more than a plane twice.
"""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import BufferedIOBase
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from segresmamba.data.untrusted import require_voxels
from segresmamba.data.volumes import geometry
from segresmamba.data.volumes.geometry import Affine, OriginalGrid
from segresmamba.data.volumes.opened_file import OpenedFile
from segresmamba.data.volumes.tiff import TIFF_SUFFIXES, open_tiff, spacing_file
from segresmamba.data.volumes.zarr_label import open_zarr
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)

# What nibabel, gzip and SimpleITK (RuntimeError) raise for files that they cannot read.
_UNREADABLE = (
    OSError, EOFError, zlib.error, ValueError, OverflowError, RuntimeError,
    ImageFileError, HeaderDataError, WrapStructError,
)  # fmt: skip
_ITK_SUFFIXES = {".nrrd", ".nhdr", ".mha", ".mhd", ".dcm"}

FOR_2D = "for single images use a tool for 2D, such as nnU-Net with -c 2d"
"""The end of the remedy for images that are not volumes."""

Planes = Iterator[npt.NDArray[Any]]


@dataclass(frozen=True)
class VoxelFile:
    """A file whose header has been read and found sound."""

    path: Path
    header: Any
    """A nibabel header of one channel; SimpleITK's formats get one with the same grid and dtype."""
    affine: Affine
    shape: tuple[int, ...]
    """(X, Y, Z), or (X, Y, Z, C) where the file holds all channels."""
    integers: bool
    """Whether all intensities are integers, judged by the stored dtype and the header's scale."""
    dtype: np.dtype[Any]
    """Type of the intensities: the stored one where there is no scale, else int64 or float32."""
    _read: Callable[[], Planes]

    @property
    def shape_XYZ(self) -> tuple[int, ...]:
        """Shape of one channel."""
        return self.shape[:3]

    def planes(self) -> Planes:
        """One (X, Y) plane of `dtype` after the other, channel by channel.

        Raises:
            DataError: While iterating or at its end, if the file is truncated or damaged.
        """
        with _data_errors(self.path):
            yield from self._read()


def open_voxels(path: Path, channels: int = 0) -> VoxelFile:
    """Read the header of a NIfTI, NRRD, MetaImage or TIFF file, or of a folder of DICOM.

    A label map that `segresmamba predict` wrote as OME-Zarr is read too.

    Args:
        path: The file or folder.
        channels: How many channels the file has along a fourth axis; 0 if it has no such axis.

    Raises:
        DataError: If it is missing or damaged, has another shape, does not hold numbers, or has no
            usable affine.
    """
    with _data_errors(path):
        kind = path.suffix.lower()
        if kind in TIFF_SUFFIXES:
            file = _from_library(path, open_tiff(path))
        elif kind == ".zarr":
            file = _from_library(path, open_zarr(path))
        elif path.is_dir() or kind in _ITK_SUFFIXES:
            from segresmamba.data.volumes.itk import open_itk  # most datasets need no SimpleITK

            file = _from_library(path, open_itk(path))
        else:
            file = _open_nifti(path)
    if channels and file.shape[3:] != (channels,):
        raise DataError(
            "an image must hold all channels along a fourth axis",
            where=path,
            got=f"shape {file.shape} for {channels} channels",
            remedy="correct the declared modalities, or add the missing one to the file",
        )
    if not channels and set(file.shape[3:]) == {1}:  # as some tools write one time point
        file = replace(file, shape=file.shape_XYZ)
    if not channels and len(file.shape) != 3:
        raise DataError(
            "a volume must have three dimensions",
            where=path,
            got=f"shape {file.shape}",
            remedy="write one file per channel or time point"
            if len(file.shape) > 3
            else f"convert volumes; {FOR_2D}",
        )
    if not geometry.is_usable(file.affine):
        raise DataError(
            "the affine does not place the voxels in space",
            where=path,
            got=np.array2string(file.affine[:3], separator=", ").replace("\n", ""),
            remedy="correct the header's sform or qform",
        )
    return file


def open_label(path: Path, labels: dict[str, int], grid: OriginalGrid) -> VoxelFile:
    """Like `open_voxels`, for a label; also a DICOM segmentation, put on the grid of its image.

    Args:
        path: The file, or a folder of DICOM.
        labels: Declared names and values.
        grid: The grid of the image.

    Raises:
        DataError: As `open_voxels`; also if a segmentation does not fit the labels or the image.
    """
    kind = path.suffix.lower()
    if kind == ".zarr" or not (path.is_dir() or kind == ".dcm"):
        return open_voxels(path)
    from segresmamba.data.volumes.dicom_seg import read_segmentation, segmentation_file

    with _data_errors(path):
        file = segmentation_file(path)
        if file is None:
            return open_voxels(path)
        label_XYZ = read_segmentation(file, labels, grid.shape_XYZ, grid.affine)
    header = OriginalGrid.from_header(grid.header, label_XYZ.dtype).header
    planes = partial(iter, np.moveaxis(label_XYZ, 2, 0))
    return VoxelFile(path, header, grid.affine, grid.shape_XYZ, True, label_XYZ.dtype, planes)


def files_of(path: Path) -> list[Path]:
    """All files from which `open_voxels` reads: of a series, beside a stack, named by a header.

    Raises:
        OSError: If the file or folder cannot be read.
    """
    kind = path.suffix.lower()
    if kind == ".zarr":
        return sorted(file for file in path.rglob("*") if file.is_file())
    if path.is_dir():
        return sorted(path.iterdir())
    found = [path]
    if kind in TIFF_SUFFIXES and (beside := spacing_file(path)):
        found.append(beside)
    elif kind in _ITK_SUFFIXES - {".dcm"}:
        from segresmamba.data.volumes.itk_header import voxel_files

        found += [file for file in voxel_files(path) if file != path and file.exists()]
    return found


def _open_nifti(path: Path) -> VoxelFile:
    with _open_bytes(path) as file:
        start = file.read(4)
        file.seek(0)
        kind = nib.Nifti2Header if geometry.is_nifti2(start) else nib.Nifti1Header
        header = kind.from_fileobj(file)
    stored, shape = header.get_data_dtype(), header.get_data_shape()
    _require_numbers(stored, path)
    start_byte = header.get_data_offset()
    packed = path.suffix.lower() == ".gz"
    require_voxels(path.stat().st_size, shape, stored.itemsize, offset=start_byte, packed=packed)
    slope, inter = header.get_slope_inter()
    scale = (slope if slope is not None else 1.0, inter if inter is not None else 0.0)
    # A scale may take integers out of the range of the stored type: they are read as int64.
    whole = stored.kind in "iu" and all(float(number).is_integer() for number in scale)
    dtype = stored if scale == (1, 0) and whole else np.dtype(np.int64 if whole else np.float32)

    def planes() -> Planes:
        size = stored.itemsize * prod(shape[:2])
        with _open_bytes(path) as file:
            file.seek(start_byte)
            for _ in range(prod(shape[2:])):
                content = file.read(size)
                if len(content) < size:
                    raise EOFError("the file ends before its last voxel")
                plane_XY = np.frombuffer(content, stored).reshape(shape[:2], order="F")
                yield _scaled(plane_XY, scale, dtype)
            _read_to_end(file, path)

    affine = geometry.in_mm(header.get_best_affine(), header)
    header.set_data_shape(shape[:3])
    return VoxelFile(path, header, affine, shape, whole, dtype.newbyteorder("="), planes)


def _read_to_end(file: BufferedIOBase, path: Path) -> None:
    """Read what follows the voxels: gzip compares its checksum at the end of the file only."""
    try:
        while file.read(1 << 20):  # 1 MiB
            pass
    except gzip.BadGzipFile as error:
        # With these words it refuses what follows a stream whose checksum was right. Some tools
        # leave bytes there, which gzip and nibabel ignore.
        if "Not a gzipped file" not in str(error):
            raise
        logger.warning("%s has bytes after the end of its gzip stream; they are ignored", path)


def _scaled(
    plane_XY: npt.NDArray[Any], scale: tuple[float, float], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    slope, inter = scale
    with np.errstate(over="ignore"):  # float64 may become infinite, which is refused later
        if slope == 1 and inter == 0:
            return plane_XY.astype(dtype.newbyteorder("="), copy=False)
        if dtype.kind == "i":
            return plane_XY.astype(dtype) * int(slope) + int(inter)
        return (plane_XY.astype(np.float64) * slope + inter).astype(dtype)


def _from_library(path: Path, file: OpenedFile) -> VoxelFile:
    _require_numbers(file.dtype, path)
    whole = file.dtype.kind in "iu"
    dtype = file.dtype if whole else np.dtype(np.float32)
    # Restoring a label needs a NIfTI header of the same grid and dtype.
    nothing = np.broadcast_to(np.zeros((), file.dtype), file.shape[:3])
    header = nib.Nifti1Image(nothing, file.affine, dtype=file.dtype).header

    def planes() -> Planes:
        return (_scaled(plane_XY, (1, 0), dtype) for plane_XY in file.planes())

    return VoxelFile(path, header, file.affine, file.shape, whole, dtype, planes)


def _open_bytes(path: Path) -> BufferedIOBase:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


@contextmanager
def _data_errors(path: Path) -> Iterator[None]:
    """Turn errors of the libraries into errors that name the file."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(
            "a file is missing",
            where=path,
            got="no such file",
            remedy="restore it, or remove the case's other files",
        ) from error
    except _UNREADABLE as error:
        raise DataError(
            "a file is truncated or damaged",
            where=path,
            got=f"{type(error).__name__}: {error}".splitlines()[0],
            remedy="copy or export it again (`gzip -t` checks a .nii.gz)",
        ) from error


def _require_numbers(dtype: np.dtype[Any], path: Path) -> None:
    if dtype.kind not in "iuf":
        raise DataError(
            "voxels must be numbers",
            where=path,
            got=f"dtype {dtype}",
            remedy="write one file per channel, as integers or floats",
        )
