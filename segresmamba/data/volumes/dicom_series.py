"""One DICOM series as a volume: its files in spatial order, and whether they make one grid.

ITK takes the grid of a series from its first slice, the distance from its first and last, and the
type of its voxels from whichever file it opens first. A slice that differs would be misread without
a word. So each slice's header is read, and the slices are used as they lie or the odd one is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813

from segresmamba.data.untrusted import require_voxels
from segresmamba.data.volumes.dicom_elements import is_sound_dicom
from segresmamba.data.volumes.opened_file import value_errors
from segresmamba.errors import DataError

# Positions in DICOM are decimal text, often rounded to hundredths.
_UNEVEN_MM = 0.05
_TURNED = 1e-3
"""Difference of direction cosines from which two slices are not parallel: 0.06 degrees."""
GDCM = "GDCMImageIO"
"""ITK's reader of DICOM: by itself ITK tries all of its readers on a file."""
_SERIES = "0020|000e"
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


def read_slices(path: Path) -> list[SliceHeader]:
    """The headers of a folder's series, or of one file, in spatial order at even distances.

    Raises:
        DataError: If there is not exactly one series, a file is damaged, or a slice does not fit
            the others. It names the files.
    """
    found: dict[str, list[SliceHeader]] = {}
    for file in _dicom_files(path):
        if read := _read_header(file):
            series, header = read
            found.setdefault(series, []).append(header)
    if not found:
        names = sorted(one.name for one in path.iterdir()) if path.is_dir() else []
        raise DataError(
            "a channel's folder must hold one DICOM series",
            where=path,
            got="no DICOM image" + (f", but {', '.join(names[:3])}" if names else ""),
            remedy="give an image file, or the folder in which the slices lie",
        )
    if len(found) > 1:
        raise DataError(
            "a channel's folder must hold one DICOM series",
            where=path,
            got=f"{len(found)} DICOM series"
            + "".join(f"; {len(some)} files like {some[0].path.name}" for some in found.values()),
            remedy="move each other series, scouts too, to a folder of its own",
        )
    (slices,) = found.values()
    if len(slices) > 1 and any(header.shape_XYZ[2] > 1 for header in slices):
        raise DataError(
            "a channel's folder must hold one volume",
            where=path,
            got=f"{len(slices)} DICOM files, some with many frames",
            remedy="give each file with many frames a folder of its own",
        )
    return in_spatial_order(slices, path)


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


def _read_header(path: Path) -> tuple[str, SliceHeader] | None:
    """The series and the header of a sound file; None if it holds no image.

    Raises:
        DataError: If it cannot be read, or cannot hold what its header says.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO(GDCM)
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        shape_XYZ = (*reader.GetSize(), 1)[:3]
        require_voxels(path.stat().st_size, shape_XYZ, 1, packed=True)
    except (RuntimeError, EOFError, ValueError) as error:
        if not _holds_image(path):
            return None
        raise DataError(
            "a DICOM file cannot be read",
            where=path,
            got=str(error).splitlines()[-1],
            remedy="copy or export it again",
        ) from error
    x, y, *_ = reader.GetSpacing()

    def text(key: str) -> str:
        return str(reader.GetMetaData(key)).strip() if reader.HasMetaDataKey(key) else ""

    return text(_SERIES), SliceHeader(
        path=path,
        position_3=np.array(reader.GetOrigin()[:3]),
        axes_33=np.reshape(reader.GetDirection(), (reader.GetDimension(),) * 2)[:3, :3],
        pixel_mm=(x, y),
        shape_XYZ=shape_XYZ,
        photometric=text(_PHOTOMETRIC),
        pixel_type=reader.GetPixelID(),
    )


def _holds_image(path: Path) -> bool:
    """Whether a file that GDCM cannot read is an image: DICOMDIR and reports have no rows."""
    from pydicom import dcmread

    try:
        with value_errors():
            return "Rows" in dcmread(
                path, stop_before_pixels=True, specific_tags=["Rows"], force=True
            )
    except ValueError:
        return True


def only_dicom_file(path: Path) -> Path | None:
    """The DICOM file at a path, or the only one in a folder; None if there are several or none.

    Raises:
        DataError: If one of the first two is damaged.
    """
    files = _dicom_files(path)
    first, second = next(files, None), next(files, None)
    return first if second is None else None


def _dicom_files(path: Path) -> Iterator[Path]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return (file for file in files if file.is_file() and is_sound_dicom(file))


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
