"""DICOM series, NRRD and MetaImage through SimpleITK.

A series is read a few slices at a time, so that its voxels are in memory once only. SimpleITK reads
the other formats as a whole.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813

from segresmamba.data.untrusted import require_voxels
from segresmamba.data.volumes.mapped_arrays import release_freed_memory

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Positions in DICOM are decimal text, often rounded to hundredths.
_UNEVEN_MM = 0.05
_SLICES_AT_ONCE = 8
_HEADER_BYTES = 1 << 16
_LINE_BYTES = 4096
_DICOM_AT = 128  # bytes of preamble, which may hold anything
_LONG_KINDS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT"}
_UNKNOWN_LENGTH = 0xFFFFFFFF
_OTHER_SYNTAXES = (b"1.2.840.10008.1.2.2\0", b"1.2.840.10008.1.2.1.99")  # big-endian, deflated
# A header of NRRD or MetaImage may name another file, which holds the voxels.
_VOXELS_ELSEWHERE = re.compile(
    rb"^(data ?file\s*:|ElementDataFile\s*=(?!\s*LOCAL))", re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True)
class ItkFile:
    """An image file or a DICOM series whose header has been read."""

    affine: npt.NDArray[np.float64]
    shape: tuple[int, ...]
    """(X, Y, Z); a file may have other dimensions."""
    dtype: np.dtype[Any]
    planes: Callable[[], Iterator[npt.NDArray[Any]]]
    """One (X, Y) plane after the other. Iterating raises the errors of `open_itk`."""


def open_itk(path: Path) -> ItkFile:
    """Open a folder with one DICOM series, or an image file.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If a folder holds several series, or slices are missing; if a shape is absurd.
        EOFError: If a file is too short for the voxels that its header names.
        RuntimeError: If SimpleITK cannot read it.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    # ITK prints warnings past Python's streams; what matters raises an error.
    sitk.ProcessObject.GlobalWarningDisplayOff()
    if not path.is_dir():
        _require_voxels(path)
        return _whole(sitk.ReadImage(str(path)))
    names = _slice_files(path)
    # ITK takes the third axis and the distance of slices from the first and the last alone.
    ends = _read(sorted({names[0], names[-1]}, key=names.index))
    if ends.GetSize()[2:] != (2,):  # a single file, perhaps with all slices in it
        return _whole(_read(names))
    return _series(names, ends)


def _whole(image: Any) -> ItkFile:
    data = sitk.GetArrayFromImage(image).T

    def planes() -> Iterator[npt.NDArray[Any]]:
        for index in np.ndindex(data.shape[2:][::-1]):
            yield data[(..., *index[::-1])]

    return ItkFile(_affine(image), data.shape, data.dtype, planes)


def _require_voxels(path: Path) -> None:
    """Compare a file's header with the file's size; reading allocates what the header says."""
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if path.suffix == ".nrrd":
        _require_nrrd_header(header)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if not _VOXELS_ELSEWHERE.search(header):
        require_voxels(path, reader.GetSize(), 1, packed=True)


def _require_nrrd_header(header: bytes) -> None:
    """Refuse lines at which ITK's reader of NRRD ends the whole process instead of failing."""
    lines, end, _ = header.replace(b"\r\n", b"\n").partition(b"\n\n")
    if not end and len(header) == _HEADER_BYTES:
        raise ValueError(f"its header has more than {_HEADER_BYTES} bytes")
    longest = max(map(len, lines.split(b"\n")))
    if longest > _LINE_BYTES:
        raise ValueError(f"a line of its header has {longest} bytes")
    if not lines.isascii() or b"\0" in lines:
        raise ValueError("its header is not plain text")


def _series(names: Sequence[str], ends: Any) -> ItkFile:
    """A series of several files, given the image of its first and last slice."""
    size_XY, affine = ends.GetSize()[:2], _affine(ends)
    # In `ends` the step from the first slice to the last is one voxel.
    affine[:3, 2] /= len(names) - 1

    def planes() -> Iterator[npt.NDArray[Any]]:
        for first in range(0, len(names), _SLICES_AT_ONCE):
            some = _read(names[first : first + _SLICES_AT_ONCE], ends.GetPixelID())
            if some.GetSize()[:2] != size_XY:
                raise ValueError(f"slices of {size_XY} and of {some.GetSize()[:2]} pixels")
            for plane_YX in sitk.GetArrayFromImage(some):
                yield plane_YX.T

    return ItkFile(affine, (*size_XY, len(names)), sitk.GetArrayFromImage(ends).dtype, planes)


def _affine(image: Any) -> npt.NDArray[np.float64]:
    affine = np.eye(4)
    axes = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:3, :3]
    affine[:3, :3] = axes * np.array(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    return _LPS_TO_RAS @ affine


def _read(names: Sequence[str], pixel_type: int | None = None) -> Any:
    """Some slices as one volume, by default with the pixel type of the first."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    if pixel_type is not None:
        reader.SetOutputPixelType(pixel_type)
    return reader.Execute()


def _is_sound_dicom(path: Path) -> bool:
    """Whether a file is DICOM, after a look at its elements: GDCM takes the memory that they name.

    The look ends at the first sequence whose length is not written down.

    Raises:
        EOFError: If an element is longer than the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    at = _DICOM_AT + 4
    if head[_DICOM_AT:at] != b"DICM":
        return False
    packed = any(syntax in head for syntax in _OTHER_SYNTAXES)
    while at + 12 <= len(head):
        group, _, kind, short = struct.unpack_from("<HH2sH", head, at)
        if packed and group != 2:  # what follows has other bytes
            break
        explicit = kind.isalpha() and kind.isupper()
        is_short = explicit and kind not in _LONG_KINDS
        begin = at + (12 if explicit and not is_short else 8)
        length = short if is_short else struct.unpack_from("<I", head, begin - 4)[0]
        if length == _UNKNOWN_LENGTH:
            break
        at = begin + length
        if at > size:
            raise EOFError(f"an element of {length} bytes in a file of {size} bytes")
    return True


def _slice_files(folder: Path) -> Sequence[str]:
    """The files of the folder's series in spatial order, at even distances."""
    for path in folder.iterdir():  # what follows reads all of them with their pixels
        if path.is_file() and _is_sound_dicom(path):
            reader = sitk.ImageFileReader()
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            require_voxels(path, reader.GetSize(), 1, packed=True)
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise ValueError(f"{len(series)} DICOM series in the folder, not one")
    names: Sequence[str] = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    # To sort the files, GDCM reads them all with their pixels, as much as the whole volume takes.
    release_freed_memory()
    origins_mm = []
    for name in names:
        reader = sitk.ImageFileReader()
        reader.SetFileName(name)
        reader.ReadImageInformation()
        origins_mm.append(reader.GetOrigin())
    # ITK takes the mean distance for all slices: a missing one would silently shift the others.
    steps_mm = np.diff(np.array(origins_mm), axis=0)
    if len(steps_mm) and np.abs(steps_mm - np.median(steps_mm, axis=0)).max() > _UNEVEN_MM:
        gaps_mm = np.linalg.norm(steps_mm, axis=1)
        raise ValueError(
            f"slices are missing or uneven: {gaps_mm.min():.3g} to {gaps_mm.max():.3g} mm apart"
        )
    return names
