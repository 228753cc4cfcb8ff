"""Volumes as the page takes them: small NIfTI images, in the geometry of the case's own files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel import orientations

from segresmamba.data import Case
from segresmamba.data.volumes import geometry
from segresmamba.data.volumes.geometry import Affine
from segresmamba.data.volumes.voxel_file import VoxelFile
from segresmamba.errors import DataError

# Header affines are float32, and some tools round the voxel size: more than this is another grid.
_TOLERANCE_VOXELS = 0.1
_LARGEST_LABEL = np.iinfo(np.int16).max
_DRAWN_TYPES = (np.uint8, np.int16, np.uint16)  # NiiVue makes textures of them as they are


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie."""

    shape_XYZ: tuple[int, ...]
    affine: Affine
    """4x4, voxel (x, y, z) to RAS mm."""

    def difference(self, other: Grid) -> str | None:
        """How another grid differs, in words; None if it is the same."""
        other = other.on_axes_of(self)
        if other.shape_XYZ != self.shape_XYZ:
            return f"{_times(other.shape_XYZ)} voxels, the image has {_times(self.shape_XYZ)}"
        apart = geometry.corner_distance_voxels(self.shape_XYZ, self.affine, other.affine)
        if apart > _TOLERANCE_VOXELS:
            return f"it lies up to {apart:.3g} voxels beside the image"
        return None

    def on_axes_of(self, other: Grid) -> Grid:
        """The same voxels in the order of the axes that another grid has."""
        turn = _turn(self.affine, other.affine)
        turned_XYZ = orientations.apply_orientation(np.broadcast_to(0, self.shape_XYZ), turn)
        back = orientations.inv_ornt_aff(turn, self.shape_XYZ)
        return Grid(turned_XYZ.shape, self.affine @ back)


def on_axes_of(image: Any, grid: Grid) -> Any:
    """A nibabel image with its axes in the order of a grid's; no voxel moves in space."""
    return image.as_reoriented(_turn(image.affine, grid.affine))


def _turn(affine: Affine, other: Affine) -> npt.NDArray[Any]:
    axes, others = (orientations.io_orientation(one) for one in (affine, other))
    turn: npt.NDArray[Any] = orientations.ornt_transform(axes, others)
    return turn


def read_file(file: VoxelFile) -> npt.NDArray[Any]:
    """All voxels (X, Y, Z) of a file.

    Raises:
        DataError: If it is truncated or damaged.
    """
    array_XYZ = np.empty(file.shape_XYZ, file.dtype, order="F")
    for z, plane_XY in enumerate(file.planes()):
        array_XYZ[..., z] = plane_XY
    return array_XYZ


def stored_channel(case: Case, channel: int) -> npt.NDArray[Any]:
    """A channel (X, Y, Z) of a stored case, put back onto the grid of the case's files.

    Raises:
        DataError: If a chunk is damaged or the file is gone.
    """
    image_CDHW, _ = case.read()
    channel_DHW = image_CDHW[channel]
    transform = case.record.grid_transform
    if transform:
        channel_DHW = transform.undo_image(channel_DHW)
    if case.record.scale:
        channel_DHW = channel_DHW * np.float32(case.record.scale[channel])
    return geometry.in_file_axes(channel_DHW, case.original.affine)


def image_nifti(array_XYZ: npt.NDArray[Any], affine: Affine) -> Any:
    """Intensities as a nibabel image."""
    if array_XYZ.dtype not in _DRAWN_TYPES:
        array_XYZ = array_XYZ.astype(np.float32)
    return _nifti(array_XYZ, affine)


def label_nifti(array_XYZ: npt.NDArray[Any], affine: Affine, where: str | Path) -> Any:
    """Label values as a nibabel image, marked as labels.

    Raises:
        DataError: If they are not label values; `where` says whose they are.
    """
    low, high = (array_XYZ.min(), array_XYZ.max()) if array_XYZ.size else (0, 0)
    whole = array_XYZ.dtype.kind in "iu" or bool((array_XYZ == np.rint(array_XYZ)).all())
    if not (whole and low >= 0 and high <= _LARGEST_LABEL):
        raise DataError(
            f"label values are whole numbers from 0 to {_LARGEST_LABEL}",
            where=where,
            got=f"{array_XYZ.dtype} from {low} to {high}",
            remedy="give an image as the image, and label maps as --label and --reference",
        )
    image = _nifti(array_XYZ.astype(np.uint8 if high < 256 else np.int16), affine)
    image.header.set_intent("label")
    return image


def _nifti(array_XYZ: npt.NDArray[Any], affine: Affine) -> Any:
    # One affine only: readers differ in whether they take the sform or the qform.
    image = nib.Nifti1Image(array_XYZ, affine)
    image.header.set_xyzt_units("mm")
    return image


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
