"""What both samples are made with: smooth random fields, and files in any orientation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel import orientations
from scipy.interpolate import make_interp_spline

Array = npt.NDArray[np.float32]


def smooth_field(shape: tuple[int, ...], knots: int, rng: np.random.Generator) -> Array:
    """Normal noise on knots^3 points, interpolated by cubic splines, axis by axis."""
    spline = make_interp_spline(np.arange(knots), np.eye(knots), bc_type="clamped")
    field = rng.normal(size=(knots,) * 3)
    for size in shape:
        weights = spline(np.linspace(0, knots - 1, size))
        field = np.tensordot(field, weights, axes=(0, 1))  # the next axis comes to the front
    return field.astype(np.float32)


def save_volume(
    data_XYZ: npt.NDArray[Any], affine: npt.NDArray[np.float64], code: str, path: Path
) -> None:
    """Write a volume as NIfTI, its axes turned to an orientation such as "LPS"."""
    turn = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(code)
    )
    turned = orientations.apply_orientation(data_XYZ, turn)
    image = nib.Nifti1Image(turned, affine @ orientations.inv_ornt_aff(turn, data_XYZ.shape))
    image.set_qform(image.affine, code="scanner")
    image.set_sform(image.affine, code="scanner")
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
