"""DICOM series, NRRD and MetaImage through SimpleITK, as nibabel images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UNEVEN_MM = 0.05
"""Positions in DICOM are decimal text, often rounded to hundredths."""


def read_itk(path: Path) -> Any:
    """Read a folder with one DICOM series, or a file.

    Returns:
        A nibabel image with a header of its own, of the file's dtype.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If a folder holds several series, or slices are missing.
        RuntimeError: If SimpleITK cannot read it.
    """
    import SimpleITK as sitk  # noqa: N813

    if not path.exists():
        raise FileNotFoundError(path)
    sitk.ProcessObject.GlobalWarningDisplayOff()
    image = _read_series(path, sitk) if path.is_dir() else sitk.ReadImage(str(path))
    affine = np.eye(4)
    axes = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:3, :3]
    affine[:3, :3] = axes * np.array(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    data_XYZ = sitk.GetArrayFromImage(image).T
    return nib.Nifti1Image(data_XYZ, _LPS_TO_RAS @ affine, dtype=data_XYZ.dtype)


def _read_series(folder: Path, sitk: Any) -> Any:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise ValueError(f"{len(series)} DICOM series in the folder, not one")
    reader = sitk.ImageSeriesReader()
    names = reader.GetGDCMSeriesFileNames(str(folder), series[0])
    reader.SetFileNames(names)
    _require_even([_origin_mm(name, sitk) for name in names])
    return reader.Execute()


def _origin_mm(name: str, sitk: Any) -> tuple[float, ...]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    reader.ReadImageInformation()
    origin: tuple[float, ...] = reader.GetOrigin()
    return origin


def _require_even(origins_mm: list[tuple[float, ...]]) -> None:
    """ITK takes the mean distance of slices for all, so a missing one would shift the others."""
    steps_mm = np.diff(np.array(origins_mm), axis=0)
    if len(steps_mm) and np.abs(steps_mm - np.median(steps_mm, axis=0)).max() > _UNEVEN_MM:
        gaps_mm = np.linalg.norm(steps_mm, axis=1)
        raise ValueError(
            f"slices are missing or uneven: {gaps_mm.min():.3g} to {gaps_mm.max():.3g} mm apart"
        )
