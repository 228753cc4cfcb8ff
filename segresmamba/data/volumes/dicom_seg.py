"""DICOM segmentation objects (SEG) as labels.

A SEG has frames only where a segment is, in any order, each with a place of its own. So every frame
is put at its place in the image's grid, and the rest is background. Segments are told apart by
their names: their numbers may differ from case to case.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from segresmamba.data.volumes.dicom_frames import Frame, frame_pixels, read_frames, read_header
from segresmamba.data.volumes.dicom_series import only_dicom_file
from segresmamba.data.volumes.geometry import LPS_TO_RAS, Affine
from segresmamba.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

_SEGMENTATION, _LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
_CONTOURS = "1.2.840.10008.5.1.4.1.1.481.3"
_OFF_GRID_VOXELS = 0.1


def segmentation_file(path: Path) -> Path | None:
    """The segmentation object at a path, which may be its folder; None if another file is there.

    Raises:
        DataError: If contours (RTSTRUCT) are there.
        EOFError, ValueError: If a DICOM file is damaged.
    """
    file = only_dicom_file(path)
    if file is None:
        return None
    kind = str(read_header(file).get("SOPClassUID", ""))
    if kind == _CONTOURS:
        raise DataError(
            "contours cannot be read as labels",
            where=file,
            got="DICOM RTSTRUCT",
            remedy="make a label volume of them, for instance with 3D Slicer (SlicerRT) or "
            "plastimatch convert, and give it as DICOM SEG or NIfTI",
        )
    return file if kind in (_SEGMENTATION, _LABEL_MAP) else None


def read_segmentation(
    path: Path, labels: dict[str, int], shape_XYZ: tuple[int, ...], affine: Affine
) -> npt.NDArray[np.int16]:
    """A segmentation as a label on the grid of its image.

    Args:
        path: The DICOM file.
        labels: Declared names and values. The names are those of the segments.
        shape_XYZ: Shape of the image.
        affine: Affine of the image, voxel to RAS.

    Raises:
        DataError: If a segment is not declared, or frames overlap or lie off the image's grid.
        EOFError, ValueError: If the file is damaged.
    """
    header = read_header(path)
    values = _values(header, labels, path)
    frames = read_frames(header, path)
    largest = 1.0
    if str(header.get("SegmentationType", "")) == "FRACTIONAL":
        largest = float(header.MaximumFractionalValue)
    label_XYZ = np.zeros(shape_XYZ, np.int16)
    for frame, pixels_XY in zip(frames, frame_pixels(path, frames), strict=True):
        for value, mask_XY in _masks(frame, pixels_XY, values, largest, path):
            x, y, z = _places(frame, mask_XY, shape_XYZ, affine, path)
            if (label_XYZ[x, y, z] != 0).any():
                raise DataError(
                    "segments overlap",
                    where=path,
                    got=f"label {value} and others in {frame.header.name}",
                    remedy="a voxel can have one label: export the segments without overlap",
                )
            label_XYZ[x, y, z] = value
    return label_XYZ


def _values(header: Dataset, labels: dict[str, int], path: Path) -> dict[int, int]:
    """Segment number to declared value."""
    declared = {name.casefold().strip(): value for name, value in labels.items()}
    names = {int(one.SegmentNumber): str(one.SegmentLabel) for one in header.SegmentSequence}
    if missing := [
        name for number, name in names.items() if number and name.casefold().strip() not in declared
    ]:
        raise DataError(
            "a segment has an undeclared name",
            where=path,
            got=", ".join(missing),
            remedy="declare it in the labels of dataset.json; declared are " + ", ".join(labels),
        )
    return {number: declared[name.casefold().strip()] for number, name in names.items() if number}


def _masks(
    frame: Frame,
    pixels_XY: npt.NDArray[Any],
    values: dict[int, int],
    largest: float,
    path: Path,
) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """The labels of a frame, and where they are."""
    if frame.segment:
        if not np.isin(pixels_XY, (0, largest)).all():
            raise DataError(
                "a segmentation holds fractions",
                where=path,
                got=f"values between 0 and {largest:g}",
                remedy="export it as a binary segmentation",
            )
        yield values[frame.segment], pixels_XY != 0
        return
    for number in np.unique(pixels_XY[pixels_XY != 0]).tolist():  # a label map
        if number not in values:
            raise DataError(
                "a label map holds a number that is no segment",
                where=path,
                got=number,
                remedy="export it again",
            )
        yield values[number], pixels_XY == number


def _places(
    frame: Frame,
    mask_XY: npt.NDArray[np.bool_],
    shape_XYZ: tuple[int, ...],
    affine: Affine,
    path: Path,
) -> npt.NDArray[np.intp]:
    """Voxels (3, n) of the image that a frame's mask covers."""
    header = frame.header
    to_mm = np.eye(4)
    to_mm[:3, :2] = header.axes_33[:, :2] * header.pixel_mm
    to_mm[:3, 3] = header.position_3
    to_voxel = np.linalg.inv(affine) @ LPS_TO_RAS @ to_mm
    x, y = np.nonzero(mask_XY)
    places_3n = to_voxel[:3, :2] @ np.stack([x, y]) + to_voxel[:3, 3:]
    whole_3n = np.rint(places_3n)
    apart = np.abs(places_3n - whole_3n).max(initial=0)
    steps = np.linalg.norm(to_voxel[:3, :2], axis=0)  # of a pixel, in voxels of the image
    if apart > _OFF_GRID_VOXELS or np.abs(steps - 1).max() > _OFF_GRID_VOXELS:
        raise DataError(
            "a segmentation has another grid than its image",
            where=path,
            got=f"{header.name}: pixels up to {apart:.2g} voxels beside those of the image, "
            f"steps of {steps[0]:.3g} and {steps[1]:.3g} voxels",
            remedy="give the image that it was drawn on, or resample it to the image's grid",
        )
    if ((whole_3n < 0) | (whole_3n >= np.array(shape_XYZ)[:, None])).any():
        raise DataError(
            "a segmentation reaches out of its image",
            where=path,
            got=f"{header.name}, for an image of {shape_XYZ} voxels",
            remedy="give the image that it was drawn on",
        )
    return whole_3n.astype(np.intp)
