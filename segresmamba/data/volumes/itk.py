"""DICOM series, NRRD and MetaImage through SimpleITK.

A series is read a few slices at a time, so that its voxels are in memory once only. SimpleITK reads
the other formats as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813

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
from segresmamba.data.volumes.itk_header import READERS, require_sound_header
from segresmamba.data.volumes.opened_file import OpenedFile

if TYPE_CHECKING:
    from pydicom import Dataset

_SLICES_AT_ONCE = 8
_ROUNDING_MM = 1e-3


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
    if not path.is_dir() and (image_io := READERS.get(path.suffix.lower())):
        require_sound_header(path)
        return _whole(sitk.ReadImage(str(path), imageIO=image_io))
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
