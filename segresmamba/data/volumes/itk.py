"""DICOM series, NRRD and MetaImage through SimpleITK.

A series is read a few slices at a time, so that its voxels are in memory once only. SimpleITK reads
the other formats as a whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813

from segresmamba.data.untrusted import require_voxels
from segresmamba.data.volumes.dicom_frames import (
    frame_count,
    frame_pixels,
    read_frames,
    read_header,
)
from segresmamba.data.volumes.dicom_series import (
    GDCM,
    SliceHeader,
    common_pixel_type,
    in_spatial_order,
    only_dicom_file,
    read_slices,
)
from segresmamba.data.volumes.geometry import LPS_TO_RAS
from segresmamba.data.volumes.opened_file import OpenedFile

if TYPE_CHECKING:
    from pydicom import Dataset

_SLICES_AT_ONCE = 8
_ROUNDING_MM = 1e-3
# ITK would take a reader by what is in a file, and hand any file to GDCM.
_NRRD, _META = "NrrdImageIO", "MetaImageIO"
_READERS = {".nrrd": _NRRD, ".nhdr": _NRRD, ".mha": _META, ".mhd": _META}
_HEADER_BYTES = 1 << 16
_LINE_BYTES = 4096
# In NRRD a comment and `key:=value` are text of any program; what else there is are fields.
_FREE_TEXT = re.compile(rb"#|[^:]*:=")
_FIELD_BYTES = 500
# A header of NRRD or MetaImage may name another file, which holds the voxels, or a list of files.
_DATA_FILE = re.compile(
    rb"^(?:data ?file\s*:|ElementDataFile\s*=)([^\r\n]*)", re.IGNORECASE | re.MULTILINE
)
_MANY_FILES = re.compile(rb"LIST|.*%")
# For each dimension ITK's reader of MetaImage fills a place of an array of ten, and does not count.
_DIMENSIONS = re.compile(rb"^\s*NDims\s*=([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_SOUND_DIMENSIONS = (b"2", b"3", b"4", b"5")


def open_itk(path: Path) -> OpenedFile:
    """Open a folder with one DICOM series, or an image file.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        DataError: If a folder does not hold one series whose slices make one grid.
        ValueError: If a shape is absurd.
        EOFError: If a file is too short for the voxels that its header names.
        RuntimeError: If SimpleITK cannot read it.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    # ITK prints warnings past Python's streams; what matters raises an error.
    sitk.ProcessObject.GlobalWarningDisplayOff()
    if not path.is_dir() and (name := _READERS.get(path.suffix.lower())):
        _require_voxels(path, name)
        return _whole(sitk.ReadImage(str(path), imageIO=name))
    file = only_dicom_file(path)
    if file is not None and frame_count(header := read_header(file)) > 1:
        return _multi_frame(file, header)
    slices = read_slices(path)
    if slices[0].shape_XYZ[2] > 1:  # beside files without an image
        return _multi_frame(slices[0].path, read_header(slices[0].path))
    if len(slices) == 1:
        return _whole(sitk.ReadImage(str(slices[0].path), imageIO=GDCM))
    return _series(slices)


def _whole(image: Any) -> OpenedFile:
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:  # colours, say, which SimpleITK puts last
        # A single image stays one, whose shape is refused, and does not become as many slices.
        array = np.moveaxis(array, -1, 0) if image.GetDimension() > 2 else array[..., 0]
    data = array.T

    def planes() -> Iterator[npt.NDArray[Any]]:
        for index in np.ndindex(data.shape[2:][::-1]):
            yield data[(..., *index[::-1])]

    affine = np.eye(4)
    axes = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:3, :3]
    count = len(axes)  # 2 in a single image, which has no place in space and is refused later
    affine[:count, :count] = axes * np.array(image.GetSpacing()[:3])
    affine[:count, 3] = image.GetOrigin()[:3]
    return OpenedFile(LPS_TO_RAS @ affine, data.shape, data.dtype, planes)


def _require_voxels(path: Path, name: str) -> None:
    """Compare a file's header with the file's size; reading allocates what the header says."""
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if name == _NRRD:
        # The path of the file with the voxels may have letters of any language.
        _require_nrrd_header(header, plain=path.suffix.lower() == ".nrrd")
    for number in _DIMENSIONS.findall(header):
        if number.strip() not in _SOUND_DIMENSIONS:
            raise ValueError(f"its header names {number.decode(errors='replace'):.40} dimensions")
    fields = re.split(rb"\r?\n\r?\n", header)[0] if name == _NRRD else header
    found = _DATA_FILE.search(fields)
    place = found[1].strip() if found else b"LOCAL"
    voxels = path if place.upper() == b"LOCAL" else path.parent / os.fsdecode(place)
    if _MANY_FILES.match(place):
        return
    if not voxels.is_file():
        raise ValueError(f"its voxels should lie in {voxels}, which is not a file")
    reader = sitk.ImageFileReader()
    reader.SetImageIO(name)
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    component_bytes = sitk.Image([1, 1], reader.GetPixelID(), 1).GetSizeOfPixelComponent()
    voxel_bytes = component_bytes * reader.GetNumberOfComponents()
    require_voxels(voxels, reader.GetSize(), voxel_bytes, packed=True)


def _require_nrrd_header(header: bytes, plain: bool) -> None:
    """Refuse lines at which ITK's reader of NRRD ends the whole process instead of failing."""
    lines, end, _ = header.replace(b"\r\n", b"\n").partition(b"\n\n")
    if not end and len(header) == _HEADER_BYTES:
        raise ValueError(f"its header has more than {_HEADER_BYTES} bytes")
    if plain and (not lines.isascii() or b"\0" in lines):
        raise ValueError("its header is not plain text")
    for line in lines.split(b"\n"):
        # What is wrong with a field is written to a buffer together with its value, unchecked.
        if len(line) > (_LINE_BYTES if _FREE_TEXT.match(line) else _FIELD_BYTES):
            begin = line[:20].decode(errors="replace")
            raise ValueError(f"a line of its header has {len(line)} bytes: {begin}")


def _series(slices: Sequence[SliceHeader]) -> OpenedFile:
    """A series of several files."""
    pixel_type = common_pixel_type(slices)

    def planes() -> Iterator[npt.NDArray[Any]]:
        for start in range(0, len(slices), _SLICES_AT_ONCE):
            reader = sitk.ImageSeriesReader()
            reader.SetImageIO(GDCM)
            reader.SetFileNames([str(one.path) for one in slices[start : start + _SLICES_AT_ONCE]])
            reader.SetOutputPixelType(pixel_type)
            for plane_YX in sitk.GetArrayFromImage(reader.Execute()):
                yield plane_YX.T

    dtype = sitk.GetArrayFromImage(sitk.Image([1, 1], pixel_type)).dtype
    shape = (*slices[0].shape_XYZ[:2], len(slices))
    return OpenedFile(_series_affine(slices), shape, dtype, planes)


def _multi_frame(path: Path, header: Dataset) -> OpenedFile:
    """One file with many frames, in spatial order and each with its own rescale."""
    frames = read_frames(header, path)
    in_order = in_spatial_order([frame.header for frame in frames], path)
    ordered = [frames[one.frame or 0] for one in in_order]
    whole = "PixelRepresentation" in header and all(
        number.is_integer() for frame in frames for number in (frame.slope, frame.intercept)
    )
    dtype = np.dtype(np.int64 if whole else np.float32)

    def planes() -> Iterator[npt.NDArray[Any]]:
        for frame, pixels_XY in zip(ordered, frame_pixels(path, ordered), strict=True):
            yield (pixels_XY * frame.slope + frame.intercept).astype(dtype)

    shape = (*in_order[0].shape_XYZ[:2], len(ordered))
    return OpenedFile(_series_affine(in_order), shape, dtype, planes)


def _series_affine(slices: Sequence[SliceHeader]) -> npt.NDArray[np.float64]:
    """The affine of slices in spatial order."""
    first, last = slices[0], slices[-1]
    affine = np.eye(4)
    affine[:3, :2] = first.axes_33[:, :2] * first.pixel_mm
    extent_3 = last.position_3 - first.position_3
    straight_3 = first.axes_33[:, 2] * np.linalg.norm(extent_3)
    # With a tilted gantry the slices do not follow one another along their normal.
    tilted = np.linalg.norm(extent_3 - straight_3) > _ROUNDING_MM
    affine[:3, 2] = (extent_3 if tilted else straight_3) / (len(slices) - 1)
    affine[:3, 3] = first.position_3
    return LPS_TO_RAS @ affine
