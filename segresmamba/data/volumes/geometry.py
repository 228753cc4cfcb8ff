"""Voxel grids: spacing, reorientation to RAS, and the way back.

The stored grid of every case is RAS: the array axes (D, H, W) run towards superior, anterior and
right. Reorientation only flips and transposes axes, so it loses nothing and can be undone exactly.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel import orientations
from nibabel.affines import apply_affine, voxel_sizes

Affine = npt.NDArray[np.float64]
"""4x4: voxel (x, y, z) to RAS mm, NIfTI's convention."""

LPS_TO_RAS: Affine = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From the axes of DICOM and ITK to those of NIfTI."""

_RAS = np.array([[0, 1], [1, 1], [2, 1]])
# NIfTI's codes of units for metres and microns, in the last three bits of `xyzt_units`. What has no
# unit is in mm.
_MM_OF_UNIT = {1: 1e3, 3: 1e-3}


def in_mm(affine: Affine, header: Any) -> Affine:
    """An affine of a NIfTI file in mm; its header may have the unit metre or micron."""
    unit_mm = _MM_OF_UNIT.get(int(header["xyzt_units"]) % 8, 1.0)
    return affine if unit_mm == 1 else np.diag([unit_mm, unit_mm, unit_mm, 1.0]) @ affine


def axis_sizes(affine: Affine) -> tuple[float, float, float]:
    """Voxel size along the axes of a file, (x, y, z)."""
    x, y, z = (float(size) for size in voxel_sizes(affine))
    return x, y, z


def spacing_mm(affine: Affine) -> tuple[float, float, float]:
    """Voxel size along (D, H, W), from the affine of the (x, y, z) order."""
    return axis_sizes(affine)[::-1]


def is_usable(affine: Affine) -> bool:
    """Whether an affine is finite and not singular, so that each voxel has a place of its own."""
    if not np.isfinite(affine).all():
        return False
    # Relative to the voxel size: with microscopy in mm the determinant is tiny, but not singular.
    volume, sizes = abs(np.linalg.det(affine[:3, :3])), voxel_sizes(affine)
    return bool(sizes.min() > 0 and volume > 1e-3 * sizes.prod())


def shear_degrees(affine: Affine) -> float:
    """How far the angle between two axes is from a right one, at most: that of a tilted gantry."""
    axes_33 = affine[:3, :3] / voxel_sizes(affine)
    cosines = np.abs(np.triu(axes_33.T @ axes_33, 1)).max()
    return float(np.degrees(np.arcsin(min(cosines, 1.0))))


def corner_distance_voxels(shape_xyz: tuple[int, ...], first: Affine, second: Affine) -> float:
    """The largest distance between the corners that two affines place, in voxels of the first.

    It is one number for an offset, a rotation and a scale alike.
    """
    ends = [(0, size - 1) for size in shape_xyz]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)
    apart = apply_affine(first, corners) - apply_affine(second, corners)
    distance_mm = np.linalg.norm(apart, axis=1).max()
    return float(distance_mm / voxel_sizes(first).min())


def ras_grid(shape_XYZ: tuple[int, ...], affine: Affine) -> tuple[tuple[int, ...], Affine]:
    """The RAS grid of a file: its (D, H, W) shape, and its affine in (x, y, z) order."""
    turn = orientations.io_orientation(affine)
    turned_XYZ = orientations.apply_orientation(np.broadcast_to(0, shape_XYZ), turn)
    return turned_XYZ.shape[::-1], affine @ orientations.inv_ornt_aff(turn, shape_XYZ)


def in_file_axes(array_DHW: npt.NDArray[Any], affine: Affine) -> npt.NDArray[Any]:
    """A view of an array on the RAS grid, with the axes of a file that has this affine.

    Writing a file's voxels to the view reorients them without a copy; reading a label from it turns
    the label back.
    """
    back = orientations.ornt_transform(_RAS, orientations.io_orientation(affine))
    view: npt.NDArray[Any] = orientations.apply_orientation(array_DHW.transpose(2, 1, 0), back)
    return view


@dataclass(frozen=True)
class OriginalGrid:
    """The grid of a case's source files: a NIfTI header, which holds shape, affine and dtype."""

    header_bytes: bytes
    seen: tuple[tuple[float, ...], ...] | None = None
    """The affine by which a network sees the axes, if it is not that of the header."""
    extensions: tuple[Any, ...] = field(default=(), compare=False)
    """What programs have added to a NIfTI header. A store does not keep it."""

    @classmethod
    def from_header(cls, header: Any, dtype: npt.DTypeLike) -> OriginalGrid:
        """Keep a nibabel header for labels of `dtype`, stored without intensity scaling."""
        header = header.copy()
        header.set_data_dtype(dtype)
        # A label's values mean classes: the scale of the image's file would change them.
        header.set_slope_inter(1, 0)
        return cls(header.binaryblock, extensions=tuple(header.extensions))

    @classmethod
    def from_text(cls, text: str) -> OriginalGrid:
        """The inverse of `text`."""
        return cls(base64.b64decode(text))

    @property
    def text(self) -> str:
        """The header in base64, for JSON."""
        return base64.b64encode(self.header_bytes).decode()

    @cached_property
    def header(self) -> Any:
        """The nibabel header."""
        kind = nib.Nifti2Header if is_nifti2(self.header_bytes) else nib.Nifti1Header
        header = kind.from_fileobj(BytesIO(self.header_bytes))
        header.extensions.extend(self.extensions)
        return header

    @property
    def affine(self) -> Affine:
        """The affine that decides how the axes are turned; that of the file, unless `seen` is."""
        return self._affine if self.seen is None else np.array(self.seen)

    @property
    def _affine(self) -> Affine:
        return in_mm(self.header.get_best_affine(), self.header)

    def seen_by(self, affine: Affine) -> OriginalGrid:
        """The same grid, whose axes are turned by another affine."""
        return replace(self, seen=tuple(tuple(row) for row in affine.tolist()))

    @property
    def grid(self) -> tuple[tuple[int, ...], Affine]:
        """Shape (D, H, W) of the grid that a network sees, and its affine in (x, y, z) order."""
        turn = orientations.io_orientation(self.affine)
        shape_DHW, _ = ras_grid(self.shape_XYZ, self.affine)
        to_file = orientations.inv_ornt_aff(turn, self.shape_XYZ)
        return shape_DHW, self._affine @ to_file

    def for_labels(self, dtype: npt.DTypeLike) -> OriginalGrid:
        """The same grid for labels of this dtype."""
        return replace(OriginalGrid.from_header(self.header, dtype), seen=self.seen)

    @property
    def shape_XYZ(self) -> tuple[int, int, int]:
        """Shape of the original array, in NIfTI's order."""
        x, y, z = self.header.get_data_shape()
        return x, y, z

    def restore(self, label_DHW: npt.NDArray[Any]) -> Any:
        """Put a label of the RAS grid back into the original grid.

        Args:
            label_DHW: Integers on the RAS grid.

        Returns:
            A nibabel image with the affine, orientation, shape and dtype of the original.
        """
        data_XYZ = in_file_axes(label_DHW, self.affine)
        assert data_XYZ.shape == self.shape_XYZ, (data_XYZ.shape, self.shape_XYZ)
        kind = nib.Nifti2Image if is_nifti2(self.header_bytes) else nib.Nifti1Image
        data_XYZ = data_XYZ.astype(self.header.get_data_dtype())
        # Given the header's own affine, nibabel leaves qform, sform and their codes alone.
        return kind(data_XYZ, self.header.get_best_affine(), self.header)


def is_nifti2(start: bytes) -> bool:
    """Whether the first bytes of a file announce NIfTI-2's header, in either byte order."""
    # The first number is the header's size: 348 bytes in NIfTI-1, 540 in NIfTI-2.
    return 540 in (int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big"))
