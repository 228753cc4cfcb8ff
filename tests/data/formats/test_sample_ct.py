from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from segresmamba.data import convert, make_sample, open_dataset, verify
from segresmamba.errors import DataError


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample(tmp_path_factory.mktemp("sample") / "raw", subjects=3, kind="ct")


def volumes(sample: Path, subject: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Image and label of a subject, turned to RAS."""
    files = (f"imagesTr/ct_{subject:02d}_0000.nii.gz", f"labelsTr/ct_{subject:02d}.nii.gz")
    image, label = (nib.as_closest_canonical(nib.load(sample / file)) for file in files)
    return np.asarray(image.dataobj), np.asarray(label.dataobj)


def test_slices_are_thick_and_air_is_outside(sample: Path) -> None:
    images = [nib.load(path) for path in sorted((sample / "imagesTr").iterdir())]
    assert len({image.shape for image in images}) > 1
    for image in images:
        np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), (0.8, 0.8, 5), rtol=1e-5)
        assert "".join(nib.aff2axcodes(image.affine)) == "LPS"
        assert image.get_data_dtype() == np.int16
        voxels = np.asarray(image.dataobj)
        assert np.median(voxels[:5]) == pytest.approx(-1000, abs=10)
        assert voxels[:5].std() > 5
        assert Path(image.get_filename()).stat().st_size < 3e6


@pytest.mark.parametrize("subject", [1, 3])
def test_organs_have_their_places_sizes_and_hounsfield_units(sample: Path, subject: int) -> None:
    image, label = volumes(sample, subject)
    ml = [(label == value).sum() * 0.8 * 0.8 * 5 / 1000 for value in range(6)]
    assert 100 < ml[1] < 300
    assert all(5 < one < 30 for one in ml[2:4])
    assert 0.5 < ml[5] < 5
    middle = label.shape[0] / 2
    sides = [np.argwhere(label == value)[:, 0].mean() - middle for value in range(1, 5)]
    assert sides[0] > 20  # the liver is on the right, and x goes to the right
    assert sides[1] < -20 < 20 < sides[2]
    medians = [np.median(image[label == value]) for value in range(1, 6)]
    assert np.abs(np.subtract(medians, (110, 180, 180, 450, 45))).max() < 40
    assert medians[4] < medians[0] - 20


def test_small_lesions_lie_in_the_liver_beside_a_larger_one(sample: Path) -> None:
    ml = []
    for subject in (1, 3):
        _, label = volumes(sample, subject)
        parts, count = ndimage.label(label == 5)
        assert count >= 2
        assert not (ndimage.binary_dilation(label == 5) & np.isin(label, (2, 3, 4))).any()
        ml += [(parts == part).sum() * 0.8 * 0.8 * 5 / 1000 for part in range(1, count + 1)]
    assert min(ml) < 0.3
    assert max(ml) > 0.5


def test_every_second_subject_is_annotated_in_every_second_slice(sample: Path) -> None:
    ignored_Z = (volumes(sample, 2)[1] == 6).mean((0, 1))
    assert set(ignored_Z) == {0, 1}
    assert (np.diff(ignored_Z) != 0).all()
    assert 6 not in volumes(sample, 1)[1]


def test_it_converts_as_a_ct_and_keeps_its_spacing(sample: Path, tmp_path: Path) -> None:
    convert(sample, tmp_path / "store")
    dataset = open_dataset(tmp_path / "store")
    assert dataset.name == "CTPhantom"
    assert [one.kind for one in dataset.preprocessing.normalisation] == ["ct"]
    assert dataset.labels["lesion"] == 5
    assert dataset.manifest.storage.ignore_value is not None
    case = dataset[dataset.case_ids[0]]
    np.testing.assert_allclose(case.spacing_mm, (5, 0.8, 0.8), rtol=1e-5)
    assert verify(tmp_path / "store") == []


def test_the_same_seed_gives_the_same_bytes(sample: Path, tmp_path: Path) -> None:
    again = make_sample(tmp_path / "again", subjects=1, kind="ct")
    other = make_sample(tmp_path / "other", subjects=1, seed=1, kind="ct")
    for name in ("imagesTr/ct_01_0000.nii.gz", "labelsTr/ct_01.nii.gz"):
        content = (sample / name).read_bytes()
        assert (again / name).read_bytes() == content
        assert (other / name).read_bytes() != content


def test_one_kind_does_not_pass_for_the_other(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="something else"):
        make_sample(sample, subjects=3)
    with pytest.raises(DataError, match="choose one of brain, hemispheres, ct"):
        make_sample(tmp_path / "raw", kind="mr")
