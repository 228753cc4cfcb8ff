from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from segresmamba.data import convert, make_sample, open_dataset, verify
from segresmamba.data.formats import sample as sample_module
from segresmamba.errors import BackendMissingError, DataError


@pytest.fixture(scope="module")
def head() -> Any:
    return sample_module._template()


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four subjects, one of each orientation."""
    return make_sample(tmp_path_factory.mktemp("sample") / "raw", subjects=4)


def test_subjects_differ_in_all_that_scans_differ_in(sample: Path) -> None:
    images = [nib.load(path) for path in sorted((sample / "imagesTr").iterdir())]
    assert ["".join(nib.aff2axcodes(image.affine)) for image in images] == [
        "RAS", "LAS", "LPS", "PIR"
    ]  # fmt: skip
    assert len({image.shape for image in images}) == 4
    assert len({round(float(np.asarray(image.dataobj).mean())) for image in images}) == 4
    for image in images:
        assert image.get_data_dtype() == np.int16
        np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), 2, rtol=1e-5)
        rotation = np.sort(np.abs(image.affine[:3, :3]).ravel())
        assert rotation[-4] > 0.01  # oblique


def test_labels_show_the_tissues(sample: Path) -> None:
    for path in sorted((sample / "labelsTr").iterdir()):
        label = np.asarray(nib.load(path).dataobj)
        image_path = sample / "imagesTr" / path.name.replace(".nii.gz", "_0000.nii.gz")
        image = np.asarray(nib.load(image_path).dataobj)
        assert set(np.unique(label)) == {0, 1, 2}
        assert 0.05 < (label == 2).mean() < (label == 1).mean() < 0.2
        grey, white = image[label == 1], image[label == 2]
        assert np.median(grey) + grey.std() / 2 < np.median(white)  # T1 contrast
        assert (image[label == 0] == 0).mean() > 0.9


@pytest.mark.parametrize("number", range(3))
def test_a_deformation_never_folds_the_head(number: int) -> None:
    coordinates = sample_module._deformation((99, 117, 95), np.random.default_rng([0, number]))
    jacobian = np.stack([np.stack(np.gradient(axis)) for axis in coordinates])
    assert np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1))).min() > 0


def test_the_sample_goes_through_the_converter_as_any_data(sample: Path, tmp_path: Path) -> None:
    done = convert(sample, tmp_path / "store")
    dataset = open_dataset(tmp_path / "store")
    assert (dataset.name, len(done.converted)) == ("MNI152Virtual", 4)
    assert dataset.labels == {"background": 0, "grey matter": 1, "white matter": 2}
    assert verify(tmp_path / "store") == []
    assert all(min(dataset[case_id].shape_DHW) >= 64 for case_id in dataset.case_ids)


def test_the_same_seed_gives_the_same_bytes(
    sample: Path, tmp_path: Path, head: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_module, "_template", lambda: head)  # read once, for the test's time
    again = make_sample(tmp_path / "again", subjects=1)
    other = make_sample(tmp_path / "other", subjects=1, seed=1)
    for name in ("imagesTr/subject_01_0000.nii.gz", "labelsTr/subject_01.nii.gz"):
        content = (sample / name).read_bytes()
        assert (again / name).read_bytes() == content
        assert (other / name).read_bytes() != content


def test_a_sample_that_is_there_is_left_alone(
    sample: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in sample.rglob("*")}
    with caplog.at_level("INFO"):
        make_sample(sample, subjects=4)
    assert "already" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in sample.rglob("*")} == before


def test_something_else_is_not_overwritten(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="something else"):
        make_sample(sample, subjects=5)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="something else"):
        make_sample(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_folder_that_one_is_in_keeps_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (".", str(tmp_path)):
        with pytest.raises(DataError, match="folder that you are in"):
            make_sample(Path(name))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_start_left_is_deleted(tmp_path: Path) -> None:
    left, other = (tmp_path / f".part-elsewhere-1-{name}" for name in ("raw", "others"))
    left.mkdir()
    (left / "dataset.json").touch()
    other.mkdir()
    make_sample(tmp_path / "raw", subjects=2, kind="ct")
    assert {path.name for path in tmp_path.iterdir()} == {other.name, "raw"}


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_module, "_template", lambda: None)
    with pytest.raises(DataError, match="cannot be written") as caught:
        make_sample(Path("/proc/sample"))
    assert caught.value.where == "/proc/sample"


def test_a_missing_nilearn_names_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_nilearn(name: str, *args: Any) -> Any:
        if name.startswith("nilearn"):
            raise ImportError(f"No module named {name}")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_nilearn)
    with pytest.raises(BackendMissingError) as caught:
        make_sample(tmp_path / "raw")
    assert "pip install 'segresmamba[sample]'" in caught.value.remedy
    assert not (tmp_path / "raw").exists()


def test_hemispheres_are_the_brain_with_left_and_right_told_apart(
    sample: Path, tmp_path: Path
) -> None:
    halves = make_sample(tmp_path / "raw", subjects=4, kind="hemispheres")
    for path in sorted((halves / "labelsTr").iterdir()):
        brain, label = (nib.load(folder / "labelsTr" / path.name) for folder in (sample, halves))
        image_name = path.name.replace(".nii.gz", "_0000.nii.gz")
        for_both = [folder / "imagesTr" / image_name for folder in (sample, halves)]
        np.testing.assert_array_equal(*(nib.load(image).dataobj for image in for_both))
        np.testing.assert_array_equal(
            np.asarray(brain.dataobj), np.array([0, 1, 2, 1, 2])[np.asarray(label.dataobj)]
        )
        # World coordinates are RAS whatever the file's orientation: x grows to the right.
        middle_mm = [
            nib.affines.apply_affine(label.affine, np.argwhere(np.isin(label.dataobj, side)))[:, 0]
            for side in ((1, 2), (3, 4))
        ]
        assert np.median(middle_mm[0]) < np.median(middle_mm[1]) - 40
        assert 0.8 < len(middle_mm[0]) / len(middle_mm[1]) < 1.25
