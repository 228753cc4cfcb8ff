from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import zarr
from ome_zarr_models.v05 import Image

from segresmamba.data.volumes.label import read_label
from segresmamba.data.volumes.voxel_file import open_voxels
from segresmamba.errors import DataError
from segresmamba.inference.label_map import LabelMap
from segresmamba.inference.model import load_model
from tests.data.raw import AFFINE
from tests.inference.conftest import noise

LABELS = {"background": 0, "ball": 1, "box": 300}


@pytest.fixture(scope="module")
def label() -> LabelMap:
    """A label map whose axes run towards left, superior and anterior."""
    values = np.random.default_rng(0).choice([0, 1, 300], (5, 6, 7)).astype(np.int16)
    return LabelMap(nib.Nifti1Image(values, AFFINE), LABELS)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_label_map_is_read_back_as_it_was_written(
    label: LabelMap, tmp_path: Path, ending: str
) -> None:
    from segresmamba.data.volumes.geometry import OriginalGrid

    path = label.save(tmp_path / f"label{ending}")
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    grid = OriginalGrid.from_header(label.image.header, np.int16)
    label_DHW, _ = read_label(path, LABELS, grid)  # refuses another geometry
    assert np.array_equal(grid.restore(label_DHW).dataobj, label.array)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".zarr"])
def test_a_label_map_of_an_image_in_microns_lies_on_its_image(tmp_path: Path, ending: str) -> None:
    image = nib.Nifti1Image(np.ones((5, 6, 7), np.int16), np.diag([800.0, 900, 1000, 1]))
    image.header.set_xyzt_units("micron")
    label = LabelMap(image, LABELS)
    np.testing.assert_allclose(label.affine.diagonal(), [0.8, 0.9, 1, 1])
    path = label.save(tmp_path / f"label{ending}")
    np.testing.assert_allclose(open_voxels(path).affine, label.affine, atol=1e-6)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_an_itk_image_gives_its_label_map_its_geometry_to_the_last_digit(
    model_run: Path, tmp_path: Path, ending: str
) -> None:
    image = sitk.GetImageFromArray(noise(14, 15, 16))
    image.SetOrigin((1 / 3, -200 / 7, 1e3 / 9))
    image.SetSpacing((0.7 / 3, 1 / 7, 1.1))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    source = tmp_path / f"image{ending}"
    sitk.WriteImage(image, str(source))
    label = load_model(model_run).segment(source)
    written = sitk.ReadImage(str(label.save(tmp_path / f"label{ending}")))
    for read in (sitk.Image.GetOrigin, sitk.Image.GetSpacing, sitk.Image.GetDirection):
        assert read(written) == read(sitk.ReadImage(str(source)))
    assert np.array_equal(sitk.GetArrayFromImage(written).T, label.array)


def test_an_ome_zarr_label_has_scale_affine_and_names(label: LabelMap, tmp_path: Path) -> None:
    path = label.save(tmp_path / "label.zarr")
    label.save(path)  # replaces it
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    group = zarr.open_group(path, mode="r")
    Image.from_zarr(group)
    canonical = nib.as_closest_canonical(label.image)
    assert np.array_equal(np.asarray(group["0"]).T, np.asarray(canonical.dataobj))
    np.testing.assert_allclose(group.attrs["segresmamba"]["affine"], canonical.affine)
    assert group.attrs["segresmamba"]["labels"] == LABELS


def test_other_endings_and_folders_that_are_missing_are_refused(
    label: LabelMap, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"labels are not written.*label\.nii\.gz"):
        label.save(tmp_path / "label.png")
    with pytest.raises(DataError, match=r"does not exist.*mkdir -p"):
        label.save(tmp_path / "no" / "label.nii")


def test_a_folder_that_cannot_be_written_is_named(label: LabelMap) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        label.save("/proc/label.nii.gz")
    with pytest.raises(DataError, match="cannot be written"):
        label.save("/proc/label.mha")


def test_a_process_that_is_killed_while_it_deletes_a_former_group_leaves_no_half_of_one(
    label: LabelMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = label.save(tmp_path / "label.zarr")

    def killed(folder: Path, **_: object) -> None:
        next(folder.rglob("zarr.json")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("segresmamba.inference.ome_zarr.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            label.save(path)
    assert label.save(path) == path
