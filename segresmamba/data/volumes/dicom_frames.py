"""One DICOM file with many frames (enhanced CT, MR and PET) as a volume.

GDCM takes the place of all frames and their rescale from the first ones. Each frame may have its
own, so their headers are read here, and are checked like those of a series of single slices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from segresmamba.data.volumes.dicom_series import SliceHeader
from segresmamba.data.volumes.opened_file import value_errors
from segresmamba.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset


@dataclass(frozen=True)
class Frame:
    """One frame of a file: where its pixels lie, and what they mean."""

    header: SliceHeader
    slope: float = 1.0
    intercept: float = 0.0
    segment: int = 0
    """In a segmentation, the number of the segment that the frame shows."""


def read_header(path: Path) -> Dataset:
    """The elements of a file before its pixels.

    Raises:
        ValueError: If it cannot be read.
    """
    from pydicom import dcmread

    with value_errors():
        return dcmread(path, stop_before_pixels=True, force=True)  # also without a preamble


def frame_count(header: Dataset) -> int:
    """How many frames a file holds: 1 if it does not say.

    Raises:
        ValueError: If it says no number.
    """
    with value_errors():
        return int(header.get("NumberOfFrames") or 1)


def read_frames(header: Dataset, path: Path) -> list[Frame]:
    """The frames of a file, in its order.

    Raises:
        DataError: If nothing says where the frames lie.
        ValueError: If an element is missing or absurd.
    """
    with value_errors():
        groups = header.get("PerFrameFunctionalGroupsSequence", [])
        if not groups:
            raise DataError(
                "nothing says where the frames of a DICOM file lie",
                where=path,
                got=f"{header.get('NumberOfFrames', 1)} frames without functional groups "
                f"({header.SOPClassUID.name})",
                remedy="they may be points in time or colours; export volumes as single slices or "
                "as enhanced multi-frame, or give NIfTI files",
            )
        if len(groups) != (count := frame_count(header)):
            raise ValueError(f"{len(groups)} functional groups of {count} frames")
        return [_frame(header, path, number, group) for number, group in enumerate(groups)]


def frame_pixels(path: Path, frames: Sequence[Frame]) -> Iterator[npt.NDArray[Any]]:
    """The (X, Y) pixels of some frames as they are stored, before their rescale.

    Raises:
        ValueError: If they cannot be decoded.
    """
    from pydicom.pixels.utils import iter_pixels

    with value_errors():
        for pixels_YX in iter_pixels(path, indices=[frame.header.frame or 0 for frame in frames]):
            if pixels_YX.ndim != 2:
                raise ValueError(f"frames of shape {pixels_YX.shape}: are they in colour?")
            yield pixels_YX.T


def _frame(header: Dataset, path: Path, number: int, own: Dataset) -> Frame:
    """A frame, of whose elements each lies in its own group or in that of all frames."""
    groups = [own, *header.get("SharedFunctionalGroupsSequence", [])]

    def group(name: str) -> Any:
        return next((found[name][0] for found in groups if name in found), None)

    orientation_6 = np.array(group("PlaneOrientationSequence").ImageOrientationPatient, float)
    x_3, y_3 = orientation_6[:3], orientation_6[3:]
    rows_mm, columns_mm = map(float, group("PixelMeasuresSequence").PixelSpacing)
    rescale = group("PixelValueTransformationSequence")
    segment = group("SegmentIdentificationSequence")
    return Frame(
        SliceHeader(
            path=path,
            position_3=np.array(group("PlanePositionSequence").ImagePositionPatient, float),
            axes_33=np.stack([x_3, y_3, np.cross(x_3, y_3)], axis=1),
            pixel_mm=(columns_mm, rows_mm),
            shape_XYZ=(int(header.Columns), int(header.Rows), 1),
            photometric=str(header.PhotometricInterpretation),
            frame=number,
        ),
        slope=float(rescale.RescaleSlope) if rescale else 1.0,
        intercept=float(rescale.RescaleIntercept) if rescale else 0.0,
        segment=int(segment.ReferencedSegmentNumber) if segment else 0,
    )
