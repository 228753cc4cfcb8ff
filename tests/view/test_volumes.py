"""Volumes as the page gets them lie where the case's files lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from segresmamba.data import Policy, convert, open_dataset
from segresmamba.data.volumes.voxel_file import open_voxels
from segresmamba.errors import DataError
from segresmamba.view.volumes import Grid, image_nifti, label_nifti, read_file, stored_channel
from tests.conftest import write_nnunet_dataset

AS_IT_IS: dict[str, Any] = {
    "spacing": "keep", "crop": False, "intensity": "auto", "dtype": "auto",
}  # fmt: skip
OBLIQUE = np.array([[0.0, -1.5, 0.1, 3], [1, 0, 0, -7], [0, 0.1, 2, 11], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of flipped, anisotropic volumes with empty borders."""
    folder = write_nnunet_dataset(tmp_path_factory.mktemp("source") / "raw", cases=2, channels=1)
    for path in (folder / "imagesTr").iterdir():
        image = nib.load(path)
        smooth = np.zeros(image.shape, np.float32)
        smooth[4:-6, 3:-5, 2:-4] = np.linspace(10, 90, 30)[:, None, None]
        nib.Nifti1Image(smooth, image.affine).to_filename(path)
    return folder


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({}, 0), ({"crop": True}, 0), ({"crop": True, "spacing": "1.6,1.2,1.1"}, 4)],
    ids=["kept", "cropped", "resampled"],
)
def test_a_stored_image_comes_back_to_the_grid_of_its_file(
    source: Path, tmp_path: Path, options: dict[str, Any], tolerance: float
) -> None:
    policy = Policy.from_options(**(AS_IT_IS | options))
    convert(source, tmp_path / "store", policy=policy)
    case = open_dataset(tmp_path / "store")["case0"]
    original = nib.load(source / "imagesTr" / "case0_0000.nii.gz")
    image = image_nifti(stored_channel(case, 0), case.original.affine)
    np.testing.assert_allclose(image.affine, original.affine)
    found, expected = np.asarray(image.dataobj), np.asarray(original.dataobj)
    inside = (slice(7, -9), slice(6, -8), slice(5, -7))  # edges are smoothed
    np.testing.assert_allclose(found[inside], expected[inside], atol=tolerance)
    assert found[0].max() == 0


def test_a_scaled_store_shows_the_intensities_of_the_file(source: Path, tmp_path: Path) -> None:
    policy = Policy.from_options(**(AS_IT_IS | {"dtype": "int16"}))
    convert(source, tmp_path / "store", policy=policy)
    case = open_dataset(tmp_path / "store")["case0"]
    assert case.record.scale
    original = nib.load(source / "imagesTr" / "case0_0000.nii.gz")
    found = stored_channel(case, 0)
    np.testing.assert_allclose(found, np.asarray(original.dataobj), atol=0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_a_file_is_read_as_it_is(tmp_path: Path, dtype: type) -> None:
    array_XYZ = np.arange(60).reshape(3, 4, 5).astype(dtype)
    nib.Nifti1Image(array_XYZ, OBLIQUE, dtype=dtype).to_filename(tmp_path / "image.nii.gz")
    file = open_voxels(tmp_path / "image.nii.gz")
    image = nib.Nifti1Image.from_bytes(image_nifti(read_file(file), file.affine).to_bytes())
    np.testing.assert_array_equal(np.asarray(image.dataobj), array_XYZ)
    np.testing.assert_allclose(image.affine, OBLIQUE, rtol=1e-6)
    assert image.get_data_dtype() in (np.uint8, np.int16, np.uint16, np.float32)


@pytest.mark.parametrize(("largest", "dtype"), [(3, np.uint8), (300, np.int16)])
def test_labels_are_small_integers_and_marked(largest: int, dtype: type) -> None:
    image = label_nifti(np.full((2, 2, 2), largest, np.float32), OBLIQUE, "here")
    assert image.get_data_dtype() == dtype
    assert image.header.get_intent()[0] == "label"


@pytest.mark.parametrize("value", [0.5, -1, 40_000, np.nan], ids=str)
def test_what_is_no_label_map_is_refused(value: float) -> None:
    with pytest.raises(DataError, match="label values are whole numbers") as caught:
        label_nifti(np.full((2, 2, 2), value), OBLIQUE, "scan.nii.gz")
    assert caught.value.where == "scan.nii.gz"


def test_grids_differ_by_shape_or_by_place() -> None:
    grid = Grid((10, 10, 10), OBLIQUE)
    shifted, rounded = OBLIQUE.copy(), OBLIQUE.copy()
    shifted[0, 3] += 5
    rounded[0, 3] += 0.01
    assert grid.difference(grid) is None
    assert grid.difference(Grid((10, 10, 10), rounded)) is None
    assert grid.difference(Grid((10, 10, 11), OBLIQUE)) == (
        "10 x 10 x 11 voxels, the image has 10 x 10 x 10"
    )
    assert grid.difference(Grid((10, 10, 10), shifted)) == "it lies up to 5 voxels beside the image"
