"""Label maps: their values, and whether they lie on the grid of their image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from segresmamba.data.volumes.label import read_label
from segresmamba.data.volumes.volume import read_volume
from segresmamba.errors import DataError
from tests.data.raw import AFFINE, SHAPE, some, write_nifti

LABELS = {"background": 0, "ball": 1, "box": 2}


def refused_label(tmp_path: Path, data: Any, affine: Any = AFFINE) -> DataError:
    image = write_nifti(tmp_path / "image.nii.gz", some())
    path = write_nifti(tmp_path / "label.nii.gz", data, affine)
    with pytest.raises(DataError) as caught:
        read_label(path, LABELS, read_volume([image]).original)
    assert caught.value.where == str(path)
    return caught.value


def test_a_label_of_another_shape_is_refused(tmp_path: Path) -> None:
    error = refused_label(tmp_path, np.ones((4, 6, 5), np.uint8))
    assert "(4, 6, 5)" in error.got


def test_a_last_axis_of_one_is_no_dimension(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", some()[..., None])
    image = read_volume([path])
    np.testing.assert_array_equal(
        image.image_CDHW, read_volume([write_nifti(tmp_path / "b.nii.gz", some())]).image_CDHW
    )
    flat = write_nifti(tmp_path / "c.nii.gz", np.ones((*SHAPE, 1), np.uint8))
    label_DHW, grid = read_label(flat, LABELS, image.original)
    assert label_DHW.all()
    assert grid.shape_XYZ == SHAPE


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("flipped", [(), (0,), (0, 1, 2)])
def test_the_same_grid_in_another_order_of_axes_is_taken(
    tmp_path: Path, axes: tuple[int, ...], flipped: tuple[int, ...]
) -> None:
    label_XYZ = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    turn = np.array([[axis, -1 if axis in flipped else 1] for axis in axes])
    stored = nib.Nifti1Image(label_XYZ, AFFINE).as_reoriented(turn)
    path = tmp_path / "turned.nii.gz"
    stored.to_filename(path)
    image = read_volume([write_nifti(tmp_path / "a.nii.gz", some())])
    straight = write_nifti(tmp_path / "straight.nii.gz", label_XYZ)
    expected_DHW, _ = read_label(straight, LABELS, image.original)
    label_DHW, grid = read_label(path, LABELS, image.original)
    np.testing.assert_array_equal(label_DHW, expected_DHW)
    np.testing.assert_array_equal(np.asarray(grid.restore(label_DHW).dataobj), stored.dataobj)


def test_a_voxel_size_rounded_to_four_digits_is_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exact, rounded = (np.diag([size, size, 2.5, 1.0]) for size in (0.703125, 0.7031))
    wide = np.ones((512, 4, 3), np.int16)
    image = read_volume([write_nifti(tmp_path / "a.nii.gz", wide, exact)])
    read_label(
        write_nifti(tmp_path / "b.nii.gz", wide.astype(np.uint8), rounded), LABELS, image.original
    )
    assert "corners up to 0.0182 voxels" in caplog.text


def test_a_label_of_another_affine_is_refused(tmp_path: Path) -> None:
    error = refused_label(tmp_path, np.ones(SHAPE, np.uint8), AFFINE @ np.diag([-1, 1, 1, 1]))
    assert "affines" in error.problem


def test_rounding_of_the_header_is_no_other_affine(tmp_path: Path) -> None:
    rounded = AFFINE + 1e-5
    rounded[3] = AFFINE[3]
    image = read_volume([write_nifti(tmp_path / "a.nii.gz", some())])
    path = write_nifti(tmp_path / "b.nii.gz", np.ones(SHAPE, np.uint8), rounded)
    label_DHW, _ = read_label(path, LABELS, image.original)
    assert label_DHW.shape == image.image_CDHW.shape[1:]


@pytest.mark.parametrize(("value", "shown"), [(3, "3"), (-1, "-1")])
def test_an_undeclared_label_is_refused(tmp_path: Path, value: int, shown: str) -> None:
    label = np.ones(SHAPE, np.int16)
    label[0, 0, 0] = value
    error = refused_label(tmp_path, label)
    assert (error.problem, error.got) == ("a label has undeclared values", shown)


def test_a_label_between_integers_is_refused(tmp_path: Path) -> None:
    label = np.ones(SHAPE, np.float32)
    label[0, 0, :2] = 0.5
    error = refused_label(tmp_path, label)
    assert error.got == "2 voxels, such as 0.5"


def test_integers_stored_as_floats_are_labels(tmp_path: Path) -> None:
    label = some(np.float32) % 3
    image = read_volume([write_nifti(tmp_path / "a.nii.gz", some())])
    path = write_nifti(tmp_path / "b.nii.gz", label)
    label_DHW, original = read_label(path, LABELS, image.original)
    assert label_DHW.dtype == np.uint8
    restored = original.restore(label_DHW)
    np.testing.assert_array_equal(np.asarray(restored.dataobj), label)
    assert restored.get_data_dtype() == np.float32


def test_many_labels_need_a_wider_type(tmp_path: Path) -> None:
    labels = {"background": 0} | {f"l{value}": value for value in range(1, 301)}
    image = read_volume([write_nifti(tmp_path / "a.nii.gz", some())])
    path = write_nifti(tmp_path / "b.nii.gz", some() + 100)
    label_DHW, _ = read_label(path, labels, image.original)
    assert (label_DHW.dtype, label_DHW.max()) == (np.int16, 220)
