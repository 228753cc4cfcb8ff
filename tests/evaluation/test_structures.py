from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from segresmamba.errors import ConfigError, DataError
from segresmamba.evaluation.structures import (
    Structures,
    read_pair,
    structures_from_json,
    structures_from_text,
)
from tests.data.raw import AFFINE, write_nifti

ONE = Structures({"ball": (1,)})


def label() -> NDArray[np.uint8]:
    volume = np.zeros((8, 9, 10), np.uint8)
    volume[2:5, 3:7, 4:6] = 1
    return volume


@pytest.mark.parametrize(
    ("labels", "members", "ignored"),
    [
        ({"background": 0, "a": 1, "b": 2}, {"a": (1,), "b": (2,)}, None),
        ({"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
         {"whole": (1, 2), "core": (2,)}, 3),
        ({"0": "background", "1": "a"}, {"a": (1,)}, None),
    ],
    ids=["nnU-Net", "regions and ignore", "Decathlon"],
)  # fmt: skip
def test_a_dataset_json_declares_the_classes(
    tmp_path: Path, labels: Any, members: dict[str, tuple[int, ...]], ignored: int | None
) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))
    assert structures_from_json(path) == Structures(members, ignored)


@pytest.mark.parametrize(
    "labels",
    [None, {}, {"background": 0}, {"a": "one"}, {"a": -1}, {"a": 1, "ignore": 1}, {"a": 40000}],
)
def test_a_dataset_json_without_sound_classes_is_refused(tmp_path: Path, labels: Any) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": labels}))
    with pytest.raises(DataError, match=r"dataset\.json: labels"):
        structures_from_json(path)


def test_the_user_declares_classes_and_regions() -> None:
    assert structures_from_text("liver=1, tumour=2,whole=1+2,ignore=9") == Structures(
        {"liver": (1,), "tumour": (2,), "whole": (1, 2)}, 9
    )


@pytest.mark.parametrize("text", ["", "liver", "liver=a", "liver=1,liver=2", "liver=1+", "=1"])
def test_a_declaration_with_a_mistake_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--labels"):
        structures_from_text(text)


def test_the_same_voxels_in_another_order_of_axes_are_the_same(tmp_path: Path) -> None:
    import nibabel as nib

    reference = write_nifti(tmp_path / "a.nii.gz", label())
    turned = nib.as_closest_canonical(nib.load(reference))
    assert turned.shape != label().shape
    turned.to_filename(tmp_path / "b.nii.gz")
    pair = read_pair(tmp_path / "b.nii.gz", reference, ONE)
    np.testing.assert_array_equal(pair.prediction_DHW, pair.reference_DHW)
    assert pair.reference_DHW.sum() == label().sum()
    assert pair.spacing_mm == pytest.approx((1.5, 2.0, 1.0))


def test_axes_that_are_not_at_right_angles_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tilted = np.diag([1.0, 1.0, 2.0, 1.0])
    straight = write_nifti(tmp_path / "a.nii.gz", label(), tilted)
    read_pair(straight, straight, ONE)
    assert not caplog.text
    tilted[1, 2] = 2 * np.tan(np.radians(20))
    path = write_nifti(tmp_path / "b.nii.gz", label(), tilted)
    read_pair(path, path, ONE)
    assert "b.nii.gz: the axes are 20 degrees off a right angle" in caplog.text
    assert "voxels of 2.128 mm3 instead of 2" in caplog.text


def test_files_of_different_formats_are_compared(tmp_path: Path) -> None:
    reference = write_nifti(tmp_path / "a.nii.gz", label(), np.diag([-1.0, -2.0, 3.0, 1.0]))
    image = sitk.GetImageFromArray(label().T)
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(image, tmp_path / "a.nrrd")
    pair = read_pair(tmp_path / "a.nrrd", reference, ONE)
    np.testing.assert_array_equal(pair.prediction_DHW, pair.reference_DHW)


def test_voxels_without_annotation_are_background_on_both_sides(tmp_path: Path) -> None:
    known = label()
    known[:3] = 3
    write_nifti(tmp_path / "a.nii", label())
    pair = read_pair(
        tmp_path / "a.nii", write_nifti(tmp_path / "b.nii", known), Structures({"ball": (1,)}, 3)
    )
    np.testing.assert_array_equal(pair.prediction_DHW, pair.reference_DHW)
    assert pair.reference_DHW.sum() == label()[3:].sum()


def fractions() -> NDArray[np.float32]:
    volume = label().astype(np.float32)
    volume[0, 0, 0] = 0.5
    return volume


def nan() -> NDArray[np.float32]:
    volume = label().astype(np.float32)
    volume[0, 0, 0] = np.nan
    return volume


@pytest.mark.parametrize(
    ("prediction", "affine", "match"),
    [
        (label()[:, :, :-1], AFFINE, r"shapes.*pred\.nii.*in the label .*ref\.nii"),
        (label(), AFFINE @ np.diag([1, 1, 1.5, 1]), r"affines.*pred\.nii.*the label .*ref\.nii"),
        (fractions(), AFFINE, r"not integers.*pred\.nii: 1 voxels, such as 0.5"),
        (nan(), AFFINE, r"not integers.*pred\.nii: 1 voxels, such as nan"),
        (label() * 2, AFFINE, r"undeclared values.*pred\.nii: 2"),
        (-label().astype(np.int16), AFFINE, r"undeclared values.*pred\.nii: -1"),
        (np.zeros((3, 4, 5, 2), np.uint8), AFFINE, r"three dimensions.*pred\.nii"),
    ],
    ids=["shape", "spacing", "fractions", "nan", "undeclared", "negative", "4D"],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_a_prediction_that_cannot_be_compared_is_refused_by_name(
    tmp_path: Path, prediction: Any, affine: Any, match: str
) -> None:
    write_nifti(tmp_path / "pred.nii", prediction, affine)
    with pytest.raises(DataError, match=match):
        read_pair(tmp_path / "pred.nii", write_nifti(tmp_path / "ref.nii", label()), ONE)


def test_a_truncated_file_is_refused_by_name(tmp_path: Path) -> None:
    reference = write_nifti(tmp_path / "ref.nii.gz", label())
    (tmp_path / "pred.nii.gz").write_bytes(reference.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"truncated or damaged.*pred\.nii\.gz"):
        read_pair(tmp_path / "pred.nii.gz", reference, ONE)
