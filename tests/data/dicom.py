"""DICOM files with many frames: enhanced images and segmentation objects."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.pixels.utils import pack_bits
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
BINARY, LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
CONTOURS = "1.2.840.10008.5.1.4.1.1.481.3"


def item(**elements: Any) -> Dataset:
    made = Dataset()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


@dataclass
class FrameSpec:
    """Where a frame lies, on the grid of `tests.data.raw.write_series`, and what it shows."""

    pixels_XY: np.ndarray
    z_mm: float
    position: tuple[float, float] = (-10.0, -20.0)
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0)
    rescale: tuple[float, float] | None = None
    segment: int = 0
    pixel_mm: Sequence[float] = field(default_factory=lambda: [1.5, 1.0])

    def group(self) -> Dataset:
        position = [*self.position, self.z_mm]
        group = item(
            PlanePositionSequence=[item(ImagePositionPatient=position)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=list(self.orientation))],
        )
        if self.rescale:
            slope, intercept = self.rescale
            group.PixelValueTransformationSequence = [
                item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US")
            ]
        if self.segment:
            group.SegmentIdentificationSequence = [item(ReferencedSegmentNumber=self.segment)]
        return group


def write_frames(
    path: Path,
    frames: Sequence[FrameSpec],
    kind: str = ENHANCED_CT,
    bits: int = 16,
    segments: Mapping[int, str] | None = None,
    changed: Callable[[Dataset], None] = lambda _: None,
) -> Path:
    """One file with these frames. With one bit a voxel it is a binary segmentation."""
    file = _new_file(path, kind, "1.2.3.4")
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.Columns, file.Rows = frames[0].pixels_XY.shape
    file.NumberOfFrames = len(frames)
    file.BitsAllocated = file.BitsStored = bits
    file.HighBit, file.PixelRepresentation = bits - 1, 0
    measures = item(PixelSpacing=list(frames[0].pixel_mm), SliceThickness=2.0)
    file.SharedFunctionalGroupsSequence = [item(PixelMeasuresSequence=[measures])]
    file.PerFrameFunctionalGroupsSequence = [frame.group() for frame in frames]
    if segments:
        file.SegmentationType = "BINARY" if kind == BINARY else "LABELMAP"
        file.SegmentSequence = [
            item(SegmentNumber=number, SegmentLabel=name) for number, name in segments.items()
        ]
    pixels = np.stack([frame.pixels_XY.T for frame in frames]).astype(
        np.uint8 if bits <= 8 else np.uint16
    )
    file.PixelData = pack_bits(pixels) if bits == 1 else pixels.tobytes()
    changed(file)
    file.save_as(path, enforce_file_format=True)
    return path


def write_report(path: Path, series: str) -> None:
    """A structured report, which scanners put beside a series: it holds no image."""
    _new_file(path, "1.2.840.10008.5.1.4.1.1.88.67", series).save_as(path, enforce_file_format=True)


def compress(path: Path) -> None:
    """Rewrite a file with explicit elements, a sequence in a sequence and compressed pixels."""
    dataset = dcmread(path)
    inner = item(CodeValue="1", CodeMeaning="one")
    dataset.AnatomicRegionSequence = [item(CodeValue="2", AnatomicRegionModifierSequence=[inner])]
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(path)


def elements_of(path: Path) -> bytes:
    """The bytes of a file without preamble and meta information, as early programs wrote files."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<I", content, 140)  # the value of the first element
    return content[144 + length :]


def _new_file(path: Path, kind: str, series: str) -> FileDataset:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, "1.2.3.4.5"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = kind, "1.2.3.4.5"
    file.SeriesInstanceUID, file.StudyInstanceUID = series, "1.2.3"
    return file
