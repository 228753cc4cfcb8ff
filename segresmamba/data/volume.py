"""Files of one case -> arrays on the RAS grid, everything doubtful refused."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import io_orientation
from nibabel.processing import resample_from_to
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from segresmamba.data import geometry
from segresmamba.data.geometry import Affine, Original
from segresmamba.data.itk import read_itk
from segresmamba.data.manifest import ChannelStatistics
from segresmamba.data.statistics import channel_statistics
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)

_GRID_TOLERANCE_VOXELS = 0.01
"""Header affines are float32: the same grid written by two tools differs by far less than this."""
_UNREADABLE = (
    OSError, EOFError, zlib.error, ValueError, RuntimeError,  # SimpleITK raises the last
    ImageFileError, HeaderDataError, WrapStructError,
)  # fmt: skip


@dataclass(frozen=True)
class Volume:
    """The image of one case on the RAS grid."""

    image_CDHW: npt.NDArray[Any]
    """int16 where all channels are integers that fit, else float32."""
    affine: Affine
    original: Original
    """Writes labels (of uint8) back into the grid of the files."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along (D, H, W)."""
        return geometry.spacing_mm(self.affine)

    @cached_property
    def statistics(self) -> tuple[ChannelStatistics, ...]:
        """Intensities of each channel."""
        return channel_statistics(self.image_CDHW)

    @property
    def mean_C(self) -> npt.NDArray[np.float32]:
        """Mean of each channel's non-zero voxels."""
        return np.array([channel.mean for channel in self.statistics], np.float32)

    @property
    def std_C(self) -> npt.NDArray[np.float32]:
        """Standard deviation of each channel's non-zero voxels."""
        return np.array([channel.std for channel in self.statistics], np.float32)


@dataclass(frozen=True)
class _Nifti:
    """One file, as stored."""

    path: Path
    data_XYZ: npt.NDArray[Any]
    affine: Affine
    header: Any


def read_volume(
    images: Sequence[Path], *, stacked_channels: int = 0, resample_mismatched: bool = False
) -> Volume:
    """Read the channels of one case.

    Args:
        images: One file (or folder of a DICOM series) per channel, in the dataset's channel order.
        stacked_channels: If not 0, `images` is one file with so many channels along a fourth axis.
        resample_mismatched: Put channels of another grid onto the first's instead of refusing them.

    Raises:
        DataError: For a file that is missing, damaged, not 3D, without a usable affine, with NaN or
            infinite voxels, without any non-zero voxel, or on another grid than the first.
    """
    opened = _channels(images, stacked_channels)
    first = next(opened)
    original = Original.of(first.header, np.uint8)
    channels, affine = [], first.affine
    for channel in chain([first], opened):
        nifti = _onto(channel, original, order=1) if resample_mismatched else channel
        _require_same_grid(nifti, original)
        channel_DHW, affine = geometry.to_ras(_narrow(nifti), first.affine)
        channels.append(channel_DHW)
    # np.stack finds the common dtype: one float32 channel makes all of them float32.
    return Volume(np.stack(channels), affine, original)


def read_label(
    path: Path,
    labels: dict[str, int],
    grid: Original,
    *,
    renumbered: dict[int, int] | None = None,
    resample_mismatched: bool = False,
) -> tuple[npt.NDArray[Any], Original]:
    """Read a label map.

    Args:
        path: NIfTI file with integers (their dtype may be a floating one).
        labels: Declared names and values.
        grid: Of the image, which the label must share.
        renumbered: Value in the file to declared value, where they differ.
        resample_mismatched: Put a label of another grid onto the image's instead of refusing it.

    Returns:
        (D, H, W) array of uint8, int16 where values exceed 255, on the RAS grid; and its original
        (the image's with the label's dtype if it was resampled).

    Raises:
        DataError: As `read_volume`; also for values that are no integers or not declared.
    """
    label = _read_nifti(path)
    if resample_mismatched:
        label = _onto(label, grid, order=0)
    _require_same_grid(label, grid)
    highest = max(labels.values())
    values_XYZ = label.data_XYZ
    if values_XYZ.dtype.kind == "f" and not (values_XYZ == np.rint(values_XYZ)).all():
        odd = values_XYZ[values_XYZ != np.rint(values_XYZ)]
        raise DataError(
            "a label has values that are no integers",
            where=path,
            got=f"{odd.size} voxels, such as {odd[0]:g}",
            remedy="export the label again with nearest-neighbour interpolation",
        )
    values_XYZ = _renumber(values_XYZ, renumbered or {}, path)
    if values_XYZ.min() < 0 or values_XYZ.max() > highest:
        found = np.unique(values_XYZ)
        undeclared = found[(found < 0) | (found > highest)]
        raise DataError(
            "a label has undeclared values",
            where=path,
            got=", ".join(f"{value:g}" for value in undeclared[:10]),
            remedy=f"declared: {labels}; declare the value or correct the file",
        )
    dtype = np.uint8 if highest <= np.iinfo(np.uint8).max else np.int16
    label_DHW, _ = geometry.to_ras(values_XYZ.astype(dtype), label.affine)
    return label_DHW, Original.of(label.header, label.header.get_data_dtype())


def _channels(images: Sequence[Path], stacked: int) -> Iterator[_Nifti]:
    if not stacked:
        yield from map(_read_nifti, images)
        return
    whole = _read_nifti(images[0], channels=stacked)
    header = whole.header.copy()
    header.set_data_shape(whole.data_XYZ.shape[:3])
    for channel in range(stacked):
        yield _Nifti(whole.path, whole.data_XYZ[..., channel], whole.affine, header)


def _renumber(
    values_XYZ: npt.NDArray[Any], renumbered: dict[int, int], path: Path
) -> npt.NDArray[Any]:
    """Give voxels their declared values; what is free in the files only must not occur there."""
    taken = [new for new in renumbered.values() if new not in renumbered]
    if any((values_XYZ == value).any() for value in taken):
        raise DataError(
            "a label has undeclared values",
            where=path,
            got=", ".join(map(str, taken)),
            remedy=f"the format writes {renumbered} (file: store); say another with --format",
        )
    out = values_XYZ.copy() if renumbered else values_XYZ
    for old, new in renumbered.items():
        out[values_XYZ == old] = new
    return out


def _onto(nifti: _Nifti, grid: Original, *, order: int) -> _Nifti:
    """The same volume on another grid, interpolated; itself where the grids agree."""
    try:
        _require_same_grid(nifti, grid)
    except DataError as mismatch:
        logger.warning("%s is resampled: %s", nifti.path, mismatch.got)
    else:
        return nifti
    dtype = nifti.data_XYZ.dtype if order == 0 else np.float32
    image = nib.Nifti1Image(nifti.data_XYZ.astype(np.float32), nifti.affine)
    there = resample_from_to(image, (grid.shape_XYZ, grid.affine), order=order)
    data_XYZ = np.asarray(there.dataobj).astype(dtype)
    header = Original.of(grid.header, nifti.header.get_data_dtype()).header
    return _Nifti(nifti.path, data_XYZ, grid.affine, header)


def _read_nifti(path: Path, channels: int = 0) -> _Nifti:
    """One file; 4D if `channels` says how many there are along its last axis."""
    image = _open(path)
    if (stored := image.get_data_dtype()).kind not in "iuf":
        raise DataError(
            "voxels must be numbers",
            where=path,
            got=f"dtype {stored}",
            remedy="write one file per channel, as integers or floats",
        )
    try:
        data_XYZ = _voxels(image)
    except _UNREADABLE as error:
        raise _damaged(path, error) from error
    if channels and data_XYZ.shape[3:] != (channels,):
        raise DataError(
            "an image must hold all channels along a fourth axis",
            where=path,
            got=f"shape {data_XYZ.shape} for {channels} channels",
            remedy="correct the declared modalities, or add the missing one to the file",
        )
    if data_XYZ.ndim != 3 + bool(channels):
        raise DataError(
            "a volume must have three dimensions",
            where=path,
            got=f"shape {data_XYZ.shape}",
            remedy="write one file per channel or time point",
        )
    if not geometry.is_usable(image.affine):
        raise DataError(
            "the affine does not place the voxels in space",
            where=path,
            got=np.array2string(image.affine[:3], separator=", ").replace("\n", ""),
            remedy="correct the header's sform or qform",
        )
    if data_XYZ.dtype.kind == "f" and (wrong := data_XYZ.size - np.isfinite(data_XYZ).sum()):
        raise DataError(
            "voxels are NaN or infinite",
            where=path,
            got=f"{wrong} of {data_XYZ.size} voxels",
            remedy="find out what wrote them; if they mean 'outside', set them to 0",
        )
    return _Nifti(path, data_XYZ, image.affine, image.header)


def _open(path: Path) -> Any:
    try:
        if path.is_dir() or path.suffix in {".nrrd", ".mha"}:
            return read_itk(path)
        # All of it at once: gzip checks its checksum only at the end of the file, which reading
        # voxels through nibabel does not reach.
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        kind = nib.Nifti2Image if geometry.is_nifti2(content) else nib.Nifti1Image
        return kind.from_bytes(content)
    except FileNotFoundError as error:
        raise DataError(
            "a file is missing",
            where=path,
            got="no such file",
            remedy="restore it, or remove the case's other files and correct numTraining",
        ) from error
    except _UNREADABLE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        "a file is truncated or damaged",
        where=path,
        got=f"{type(error).__name__}: {error}".splitlines()[0],
        remedy="copy or export it again (`gzip -t` checks a .nii.gz)",
    )


def _voxels(image: Any) -> npt.NDArray[Any]:
    """The intensities: integers where file and scaling are integers, else float32."""
    if isinstance(image.dataobj, np.ndarray):  # of SimpleITK, which has applied the scaling
        data: npt.NDArray[Any] = image.dataobj
        return data.astype(np.float32, copy=False) if data.dtype.kind == "f" else data
    stored, slope, inter = image.get_data_dtype(), image.dataobj.slope, image.dataobj.inter
    if stored.kind == "f" or not (float(slope).is_integer() and float(inter).is_integer()):
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            voxels: npt.NDArray[Any] = image.get_fdata(dtype=np.float32)
        return voxels
    raw: npt.NDArray[Any] = image.dataobj.get_unscaled()
    if (slope, inter) == (1, 0):
        return raw
    wide = np.int32 if stored.itemsize <= 2 else np.int64
    scaled: npt.NDArray[Any] = np.multiply(raw, int(slope), dtype=wide) + int(inter)
    return scaled


def _narrow(nifti: _Nifti) -> npt.NDArray[Any]:
    """The stored dtype of one channel."""
    data_XYZ = nifti.data_XYZ
    low, high = data_XYZ.min(), data_XYZ.max()
    if low == high == 0:
        raise DataError(
            "an image has no non-zero voxel",
            where=nifti.path,
            got="0 everywhere",
            remedy="export it again, or remove the case and correct numTraining",
        )
    limits = np.iinfo(np.int16)
    fits = data_XYZ.dtype.kind != "f" and limits.min <= low and high <= limits.max
    return data_XYZ.astype(np.int16 if fits else np.float32, copy=False)


def _require_same_grid(nifti: _Nifti, grid: Original) -> None:
    shape_XYZ = nifti.data_XYZ.shape
    if shape_XYZ != grid.shape_XYZ:
        raise DataError(
            "two files of a case have different shapes",
            where=nifti.path,
            got=f"{shape_XYZ}, and {grid.shape_XYZ} in the case's first image",
            remedy="resample one onto the other's grid (labels with nearest neighbour)",
        )
    apart = geometry.corner_distance_voxels(shape_XYZ, grid.affine, nifti.affine)
    same_axes = (io_orientation(nifti.affine) == io_orientation(grid.affine)).all()
    if apart > _GRID_TOLERANCE_VOXELS or not same_axes:
        raise DataError(
            "two files of a case have different affines",
            where=nifti.path,
            got=f"corners up to {apart:.3g} voxels from those of the case's first image",
            remedy="resample one onto the other's grid, or copy the right header to both",
        )
