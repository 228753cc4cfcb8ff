"""One DICOM series as a volume: its files in spatial order, and whether they make one grid.

ITK takes the grid of a series from its first slice, the distance from its first and last, and the
type of its voxels from whichever file it opens first. A slice that differs would be misread without
a word. So each slice's header is read, and the slices are used as they lie or the odd one is named.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813

from segresmamba.data.untrusted import require_voxels
from segresmamba.data.volumes.mapped_arrays import release_freed_memory
from segresmamba.data.volumes.opened_file import value_errors
from segresmamba.errors import DataError

# Positions in DICOM are decimal text, often rounded to hundredths.
_UNEVEN_MM = 0.05
_TURNED = 1e-3
"""Difference of direction cosines from which two slices are not parallel: 0.06 degrees."""
_DICOM_AT = 128  # bytes of preamble, which may hold anything
_SHORT_KINDS = {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT"}
_SHORT_KINDS |= {b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
_LONG_KINDS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT"}
_LONG_KINDS |= {b"UV"}
_ITEMS = 0xFFFE  # the group of the items of a sequence
_UNKNOWN_LENGTH = 0xFFFFFFFF
_IMPLICIT_SYNTAX = b"1.2.840.10008.1.2\0"
_OTHER_SYNTAXES = (b"1.2.840.10008.1.2.2\0", b"1.2.840.10008.1.2.1.99")  # big-endian, deflated
_HEADER_BYTES = 1 << 16
_PHOTOMETRIC = "0028|0004"
_EXACT_IN_INT32 = {sitk.sitkUInt8, sitk.sitkInt8, sitk.sitkUInt16, sitk.sitkInt16, sitk.sitkInt32}


@dataclass(frozen=True)
class SliceHeader:
    """The header of one file of a series, or of one frame. Axes and positions are LPS, in mm."""

    path: Path
    position_3: npt.NDArray[np.float64]
    axes_33: npt.NDArray[np.float64]
    """Columns: the unit vectors along x and y of the image, and its normal."""
    pixel_mm: tuple[float, float]
    shape_XYZ: tuple[int, int, int]
    """Z is more than 1 where the file holds a whole volume."""
    photometric: str
    """MONOCHROME1 where small values are bright."""
    pixel_type: int = 0
    """SimpleITK's type of the voxels after this file's own rescale slope and intercept; of frames,
    which SimpleITK does not read, there is none."""
    frame: int | None = None
    """Which frame of its file it is, from 0."""

    @property
    def name(self) -> str:
        """What messages call it."""
        frame = "" if self.frame is None else f" frame {self.frame + 1}"
        return f"{self.path.name}{frame}"


def read_slices(folder: Path) -> list[SliceHeader]:
    """The headers of a folder's series, in spatial order at even distances.

    Raises:
        DataError: If there is not exactly one series, or a slice does not fit the others. It names
            the files.
        EOFError, ValueError: If a file cannot hold what its header says.
        RuntimeError: If SimpleITK cannot read a header.
    """
    headers: dict[str, SliceHeader] = {}
    others: set[str] = set()
    for path in folder.iterdir():  # GDCM reads all of them with their pixels
        if not path.is_file() or not is_sound_dicom(path):
            continue
        try:
            headers[str(path)] = header = _read_header(path)
        except RuntimeError:
            from pydicom import dcmread

            with value_errors():
                elements = dcmread(path, stop_before_pixels=True, specific_tags=["Rows"])
            if "Rows" in elements:  # DICOMDIR and reports have no pixels
                raise
            others.add(str(path))
            continue
        require_voxels(path, header.shape_XYZ, 1, packed=True)
    found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    listed = [sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in found]
    names = [kept for files in listed if (kept := [name for name in files if name not in others])]
    # To sort the files, GDCM reads them all with their pixels, as much as the whole volume takes.
    release_freed_memory()
    if len(names) != 1:
        raise DataError(
            "a channel's folder must hold one DICOM series",
            where=folder,
            got=f"{len(names)} DICOM series"
            + "".join(f"; {len(files)} files like {Path(files[0]).name}" for files in names),
            remedy="move each other series, scouts too, to a folder of its own",
        )
    # GDCM also knows files without the mark of DICOM, whose headers are not read yet.
    (files,) = names
    slices = [headers.get(name) or _read_header(Path(name)) for name in files]
    if len(slices) > 1 and any(header.shape_XYZ[2] > 1 for header in slices):
        raise DataError(
            "a channel's folder must hold one volume",
            where=folder,
            got=f"{len(slices)} DICOM files, some with many frames",
            remedy="give each file with many frames a folder of its own",
        )
    return in_spatial_order(slices, folder)


def in_spatial_order(slices: Sequence[SliceHeader], where: Path) -> list[SliceHeader]:
    """The slices of one volume in order, at even distances.

    Raises:
        DataError: If a slice does not fit the others.
    """
    _require_alike(slices)
    # GDCM falls back to the order of the names where two positions are equal.
    normal_3 = slices[0].axes_33[:, 2]
    ordered = sorted(slices, key=lambda header: float(header.position_3 @ normal_3))
    _require_even(ordered, where)
    return ordered


def common_pixel_type(slices: Sequence[SliceHeader]) -> int:
    """A type that holds the voxels of all slices: PET scanners rescale each by its own range."""
    types = {header.pixel_type for header in slices}
    if len(types) == 1:
        return types.pop()
    return int(sitk.sitkInt32 if types <= _EXACT_IN_INT32 else sitk.sitkFloat32)


def _read_header(path: Path) -> SliceHeader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    x, y, *_ = reader.GetSpacing()
    is_said = reader.HasMetaDataKey(_PHOTOMETRIC)
    return SliceHeader(
        path=path,
        position_3=np.array(reader.GetOrigin()[:3]),
        axes_33=np.reshape(reader.GetDirection(), (reader.GetDimension(),) * 2)[:3, :3],
        pixel_mm=(x, y),
        shape_XYZ=(*reader.GetSize(), 1)[:3],
        photometric=str(reader.GetMetaData(_PHOTOMETRIC)).strip() if is_said else "",
        pixel_type=reader.GetPixelID(),
    )


def only_dicom_file(path: Path) -> Path | None:
    """The DICOM file at a path, or the only one in a folder; None if there are several or none.

    Raises:
        EOFError: If an element is longer than its file.
    """
    files = path.iterdir() if path.is_dir() else [path]
    dicom = (one for one in files if one.is_file() and is_sound_dicom(one))
    first, second = next(dicom, None), next(dicom, None)
    return first if second is None else None


def is_sound_dicom(path: Path) -> bool:
    """Whether a file is DICOM, after a look at its elements: GDCM takes the memory that they name.

    The look ends at the first sequence whose length is not written down.

    Raises:
        EOFError: If an element is longer than the file, of a kind that DICOM does not have, or an
            item of no sequence. GDCM would take the length of the last two from other bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    at = _DICOM_AT + 4
    if head[_DICOM_AT:at] != b"DICM":
        return False
    has_kinds = _IMPLICIT_SYNTAX not in head
    packed = any(syntax in head for syntax in _OTHER_SYNTAXES)
    while at + 8 <= len(head):
        group, _, kind, short = struct.unpack_from("<HH2sH", head, at)
        if packed and group != 2:  # what follows has other bytes
            break
        if group == _ITEMS:
            raise EOFError("an item that is not in a sequence")
        explicit = (group == 2 or has_kinds) and kind.isalpha() and kind.isupper()
        is_short = explicit and kind in _SHORT_KINDS
        if explicit and not is_short and kind not in _LONG_KINDS:
            raise EOFError(f"an element of the unknown kind {kind.decode()}")
        begin = at + (12 if explicit and not is_short else 8)
        if len(head) < begin <= size:
            break
        # A header that its file cuts off names no length.
        length = short if is_short else int.from_bytes(head[begin - 4 : begin], "little")
        if length == _UNKNOWN_LENGTH:
            break
        at = begin + length
        if at > size:
            raise EOFError(f"an element of {length} bytes in a file of {size} bytes")
    return True


def _require_alike(slices: Sequence[SliceHeader]) -> None:
    """Refuse a slice whose pixels do not lie, or do not mean, what those of most others do."""
    for header in slices:
        if header.photometric and not header.photometric.startswith("MONOCHROME"):
            raise DataError(
                "a DICOM slice is in colour",
                where=header.path,
                got=header.photometric,
                remedy="give the original grey values, or a file for each colour",
            )
    axes_33 = np.median([header.axes_33 for header in slices], axis=0)
    kinds = [
        {
            "pixels": header.shape_XYZ[:2],
            "planes in the file": header.shape_XYZ[2],
            "pixel size in mm": tuple(round(size, 4) for size in header.pixel_mm),
            "photometric interpretation": header.photometric or "none",
            "orientation": "parallel"
            if np.abs(header.axes_33 - axes_33).max() < _TURNED
            else f"turned by up to {np.abs(header.axes_33 - axes_33).max():.2g} (cosines)",
        }
        for header in slices
    ]
    for what in kinds[0]:
        usual, _ = Counter(kind[what] for kind in kinds).most_common(1)[0]
        for header, kind in zip(slices, kinds, strict=True):
            if kind[what] != usual:
                raise DataError(
                    f"a slice of a DICOM series differs from the others: {what}",
                    where=header.path.with_name(header.name),
                    got=f"{kind[what]}, and {usual} in most of {len(slices)} slices",
                    remedy="move the slice out of the folder if it is a scout or of another scan; "
                    "otherwise export the series again",
                )


def _require_even(slices: Sequence[SliceHeader], where: Path) -> None:
    """Refuse missing, duplicate and unevenly spaced slices, each in its own words."""
    steps_3 = np.diff([header.position_3 for header in slices], axis=0)
    if not len(steps_3):
        return
    usual_3 = np.median(steps_3, axis=0)
    distances_mm, usual_mm = np.linalg.norm(steps_3, axis=1), float(np.linalg.norm(usual_3))
    odd = int(np.abs(steps_3 - usual_3).max(axis=1).argmax())
    pair = f"{slices[odd].name} and {slices[odd + 1].name}"
    if distances_mm.min() < _UNEVEN_MM:
        same = int(distances_mm.argmin())
        raise DataError(
            "two slices of a DICOM series lie at the same position",
            where=where,
            got=f"{slices[same].name} and {slices[same + 1].name}",
            remedy="remove the duplicate; several time points or echoes each need a folder of "
            "their own",
        )
    if np.abs(steps_3[odd] - usual_3).max() <= _UNEVEN_MM:
        return
    gaps = distances_mm[odd] / usual_mm
    if gaps > 1.5 and np.abs(steps_3[odd] - round(gaps) * usual_3).max() <= _UNEVEN_MM:
        raise DataError(
            "slices of a DICOM series are missing",
            where=where,
            got=f"{round(gaps) - 1} between {pair}: {distances_mm[odd]:.4g} mm apart, the others "
            f"{usual_mm:.4g} mm",
            remedy="export the series again, with all its slices",
        )
    raise DataError(
        "the slices of a DICOM series are unevenly spaced",
        where=where,
        got=f"{distances_mm.min():.4g} to {distances_mm.max():.4g} mm apart; {pair} differ most",
        remedy="resample the series to one distance, for instance with dcm2niix, and give the "
        "NIfTI file",
    )
