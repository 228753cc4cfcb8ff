"""Small nnU-Net raw datasets, one fault at a time, and DICOM series."""

from __future__ import annotations

import gzip
import json
import locale
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813

AFFINE = np.array(
    [[-1.0, 0.0, 0.0, 30.0], [0.0, 0.0, 2.0, -20.0], [0.0, 1.5, 0.0, 10.0], [0.0, 0.0, 0.0, 1.0]]
)
"""Axes left, superior, anterior: flips and permutes on the way to RAS."""
SHAPES = ((40, 34, 50), (36, 44, 38), (33, 40, 45))
SHAPE = (4, 5, 6)
"""Voxels of a small image along x, y, z."""


def some(dtype: Any = np.int16) -> np.ndarray:
    """Voxels of `SHAPE`, each with a value of its own, none of them 0."""
    return np.arange(1, 1 + np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


def write_nifti(path: Path, data: Any, affine: Any = AFFINE) -> Path:
    nib.Nifti1Image(data, affine).to_filename(path)
    return path


def write_header(path: Path, dims: tuple[int, ...], content: int, two: bool = False) -> Path:
    """A NIfTI file whose header names any dimensions, with so many bytes of voxels."""
    header = (nib.Nifti2Header if two else nib.Nifti1Header)()
    header.set_data_dtype(np.int16)
    header.set_sform(AFFINE, code=1)
    header["dim"] = np.array([len(dims), *dims, 1, 1, 1, 1], header["dim"].dtype)
    header["magic"] = b"n+2\0\r\n\032\n" if two else b"n+1"
    header["vox_offset"] = 544 if two else 352
    data = header.binaryblock + bytes(4 + content)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def image_path(folder: Path, case: str, channel: int = 0, ending: str = ".nii.gz") -> Path:
    return folder / "imagesTr" / f"{case}_{channel:04d}{ending}"


def label_path(folder: Path, case: str, ending: str = ".nii.gz") -> Path:
    return folder / "labelsTr" / f"{case}{ending}"


def describe(folder: Path, **changes: Any) -> Path:
    """(Re)write dataset.json; a change of None removes the key."""
    path = folder / "dataset.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    content = {key: value for key, value in (content | changes).items() if value is not None}
    path.write_text(json.dumps(content))
    return path


def write_raw(
    folder: Path,
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    channels: int = 1,
    dtype: Any = np.int16,
    ending: str = ".nii.gz",
) -> Path:
    """Cases case_0, case_1, ... with a ball (1) and, in all but the first, a box (2)."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number, shape in enumerate(shapes):
        rng = np.random.default_rng(number)
        grid = np.stack(np.meshgrid(*[np.arange(size) for size in shape], indexing="ij"))
        centre = np.array(shape) // 2 + rng.integers(-4, 4, 3)
        label = (((grid - centre[:, None, None, None]) ** 2).sum(0) < 49).astype(np.uint8)
        if number:
            label[2:7, 3:9, 4:8] = 2
        case = f"case_{number}"
        write_nifti(label_path(folder, case, ending), label)
        for channel in range(channels):
            image = rng.normal(100 + 50 * channel, 10, shape) + 80 * label
            write_nifti(image_path(folder, case, channel, ending), image.astype(dtype))
    describe(
        folder,
        name="Balls",
        channel_names={str(channel): f"channel {channel}" for channel in range(channels)},
        labels={"background": 0, "ball": 1, "box": 2},
        numTraining=len(shapes),
        file_ending=ending,
    )
    return folder


def write_series(
    folder: Path,
    data_XYZ: np.ndarray,
    changed: Callable[[int], Mapping[str, str]] = lambda _: {},
) -> None:
    """One CT series, axes left, posterior, superior, 2 mm slices.

    `changed` takes a slice's number and returns tags with other values than usual.
    """
    folder.mkdir(parents=True)
    before = locale.setlocale(locale.LC_ALL)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(data_XYZ.shape[2]):
        image = sitk.GetImageFromArray(data_XYZ[:, :, z].T[None])
        tags = {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0020|000e": "1.2.3.4",
            "0020|000d": "1.2.3",
            "0008|0018": f"1.2.3.4.{z + 1}",
            "0020|0013": str(z),
            "0020|0032": f"-10\\-20\\{2.0 * z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|0030": "1.5\\1",
        } | changed(z)
        rows_mm, columns_mm = map(float, tags["0028|0030"].split("\\"))
        image.SetSpacing((columns_mm, rows_mm, 2.0))
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{z:03d}.dcm"))
        writer.Execute(image)
    # Writing DICOM leaves the whole process in the C locale, where files are read as ASCII.
    locale.setlocale(locale.LC_ALL, before)
