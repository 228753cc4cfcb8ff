"""One file of voxels, read plane by plane, so that no more than a plane is held twice."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from segresmamba.data.volumes import geometry
from segresmamba.data.volumes.geometry import Affine
from segresmamba.data.volumes.itk import open_itk
from segresmamba.errors import DataError

_UNREADABLE = (
    OSError, EOFError, zlib.error, ValueError, RuntimeError,  # SimpleITK raises the last
    ImageFileError, HeaderDataError, WrapStructError,
)  # fmt: skip
_REST = 1 << 20  # bytes

Planes = Iterator[npt.NDArray[Any]]


@dataclass(frozen=True)
class VoxelFile:
    """A file whose header has been read, and found sound."""

    path: Path
    header: Any
    """nibabel's; made up for what SimpleITK reads."""
    affine: Affine
    shape: tuple[int, ...]
    """(X, Y, Z), or (X, Y, Z, C) where the file holds all channels."""
    integers: bool
    """Whether all intensities are integers, by their dtype and the header's scale."""
    dtype: np.dtype[Any]
    """That holds them: the stored one where there is no scale, else int64 or float32."""
    _read: Callable[[], Planes]

    @property
    def shape_XYZ(self) -> tuple[int, ...]:
        """Of one channel."""
        return self.shape[:3]

    def planes(self) -> Planes:
        """The intensities of one (X, Y) plane after the other, channel by channel, of `dtype`.

        Raises:
            DataError: While or at the end of iterating: if the file is truncated or damaged.
        """
        with _naming(self.path):
            yield from self._read()


def open_voxels(path: Path, channels: int = 0) -> VoxelFile:
    """Read the header of a NIfTI, NRRD or MetaImage file, or of a folder with a DICOM series.

    Args:
        path: The file or folder.
        channels: How many channels the file has along a fourth axis; 0 if it has none.

    Raises:
        DataError: If it is missing or damaged, of another shape, no numbers, or nowhere in space.
    """
    with _naming(path):
        file = _of_itk(path) if path.is_dir() or path.suffix in {".nrrd", ".mha"} else _nifti(path)
    if file.shape[3:] != ((channels,) if channels else ()) or len(file.shape) < 3:
        raise _wrong_shape(path, file.shape, channels)
    if not geometry.is_usable(file.affine):
        raise DataError(
            "the affine does not place the voxels in space",
            where=path,
            got=np.array2string(file.affine[:3], separator=", ").replace("\n", ""),
            remedy="correct the header's sform or qform",
        )
    return file


def _nifti(path: Path) -> VoxelFile:
    with _stream(path) as file:
        start = file.read(4)
        file.seek(0)
        kind = nib.Nifti2Header if geometry.is_nifti2(start) else nib.Nifti1Header
        header = kind.from_fileobj(file)
    stored, shape = header.get_data_dtype(), header.get_data_shape()
    _require_numbers(stored, path)
    slope, inter = header.get_slope_inter()
    scale = (slope if slope is not None else 1.0, inter if inter is not None else 0.0)
    whole = stored.kind in "iu" and all(float(number).is_integer() for number in scale)
    dtype = stored if scale == (1, 0) and whole else np.dtype(np.int64 if whole else np.float32)

    def planes() -> Planes:
        with _stream(path) as file:
            file.seek(header.get_data_offset())
            for _ in range(prod(shape[2:])):
                yield _scaled(_read_plane(file, stored, shape), scale, dtype)
            while file.read(_REST):  # gzip checks its checksum at the end
                pass

    affine = header.get_best_affine()
    return VoxelFile(path, header, affine, shape, whole, dtype.newbyteorder("="), planes)


def _read_plane(file: IO[bytes], stored: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    wanted = stored.itemsize * prod(shape[:2])
    content = file.read(wanted)
    if len(content) < wanted:
        raise EOFError("the file ends before its last voxel")
    return np.frombuffer(content, stored).reshape(shape[:2], order="F")


def _scaled(
    plane_XY: npt.NDArray[Any], scale: tuple[float, float], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    slope, inter = scale
    if slope == 1 and inter == 0:
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            return plane_XY.astype(dtype.newbyteorder("="), copy=False)
    if dtype.kind == "i":
        return plane_XY.astype(dtype) * int(slope) + int(inter)
    with np.errstate(over="ignore"):
        return (plane_XY.astype(np.float64) * slope + inter).astype(dtype)


def _of_itk(path: Path) -> VoxelFile:
    file = open_itk(path)
    _require_numbers(file.dtype, path)
    whole = file.dtype.kind in "iu"
    dtype = file.dtype if whole else np.dtype(np.float32)

    def planes() -> Planes:
        return (_scaled(plane_XY, (1, 0), dtype) for plane_XY in file.planes())

    return VoxelFile(path, file.header, file.affine, file.shape, whole, dtype, planes)


@contextmanager
def _stream(path: Path) -> Iterator[Any]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield file


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the libraries become errors that name the file."""
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


def _wrong_shape(path: Path, shape: tuple[int, ...], channels: int) -> DataError:
    if channels:
        return DataError(
            "an image must hold all channels along a fourth axis",
            where=path,
            got=f"shape {shape} for {channels} channels",
            remedy="correct the declared modalities, or add the missing one to the file",
        )
    return DataError(
        "a volume must have three dimensions",
        where=path,
        got=f"shape {shape}",
        remedy="write one file per channel or time point",
    )
