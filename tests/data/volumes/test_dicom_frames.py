"""A DICOM file with many frames is read as each frame's header means it, or it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import RLELossless

from segresmamba.data.volumes.itk import open_itk
from segresmamba.data.volumes.opened_file import OpenedFile
from segresmamba.errors import DataError
from tests.data.dicom import FrameSpec, write_frames, write_report
from tests.data.raw import write_series

VOXELS_XYZ = np.random.default_rng(0).integers(0, 60_000, (8, 7, 5)).astype(np.uint16)
FRAMES = [FrameSpec(VOXELS_XYZ[..., z], 2.0 * z) for z in range(5)]


def opened(folder: Path, frames: list[FrameSpec] = FRAMES, **words: Any) -> OpenedFile:
    write_frames(folder / "CT" / "all.dcm", frames, **words)
    return open_itk(folder / "CT")


def voxels_XYZ(file: OpenedFile) -> np.ndarray:
    return np.stack(list(file.planes()), axis=-1)


def test_frames_are_the_same_volume_as_single_slices(tmp_path: Path) -> None:
    small_XYZ = (VOXELS_XYZ // 4).astype(np.int16)
    write_series(tmp_path / "slices", small_XYZ)
    series = open_itk(tmp_path / "slices")
    frames = [FrameSpec(small_XYZ[..., z], 2.0 * z) for z in range(5)]
    file = opened(tmp_path, frames)
    np.testing.assert_allclose(file.affine, series.affine)
    np.testing.assert_array_equal(voxels_XYZ(file), voxels_XYZ(series))
    assert file.dtype.kind == "i"
    assert open_itk(tmp_path / "CT" / "all.dcm").shape == file.shape


def test_the_order_in_the_file_does_not_matter(tmp_path: Path) -> None:
    file = opened(tmp_path, [FRAMES[z] for z in (3, 0, 4, 2, 1)])
    np.testing.assert_array_equal(voxels_XYZ(file), VOXELS_XYZ)
    np.testing.assert_allclose(file.affine[:3, 2:], [[0, 10], [0, 20], [2, 0]])


def test_each_frame_has_its_own_rescale(tmp_path: Path) -> None:
    frames = [replace(one, rescale=(z + 1, -z)) for z, one in enumerate(FRAMES)]
    whole = opened(tmp_path, frames)
    expected = VOXELS_XYZ.astype(int) * np.arange(1, 6) - np.arange(5)
    np.testing.assert_array_equal(voxels_XYZ(whole), expected)
    assert whole.dtype.kind == "i"
    frames = [replace(one, rescale=(0.5 * z + 0.5, 0.25)) for z, one in enumerate(FRAMES)]
    fractions = opened(tmp_path, frames)
    np.testing.assert_allclose(voxels_XYZ(fractions), VOXELS_XYZ * np.arange(1, 6) / 2 + 0.25)
    assert fractions.dtype == np.float32


def test_compressed_frames_are_read(tmp_path: Path) -> None:
    file = opened(tmp_path, changed=lambda dataset: dataset.compress(RLELossless))
    np.testing.assert_array_equal(voxels_XYZ(file), VOXELS_XYZ)


def test_a_tilted_gantry_makes_a_sheared_affine(tmp_path: Path) -> None:
    frames = [replace(one, position=(-10, -20 + z)) for z, one in enumerate(FRAMES)]
    np.testing.assert_allclose(opened(tmp_path, frames).affine[:3, 2], [0, -1, 2])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"z_mm": 6.0}, "two slices of a DICOM series lie at the same position"),
        ({"z_mm": 9.0}, "the slices of a DICOM series are unevenly spaced"),
        ({"z_mm": 12.0}, "slices of a DICOM series are missing"),
        (
            {"orientation": (0.8, 0.6, 0, -0.6, 0.8, 0)},
            "a slice of a DICOM series differs from the others: orientation",
        ),
    ],
)
def test_a_frame_that_does_not_fit_is_named(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DataError) as caught:
        opened(tmp_path, [*FRAMES[:4], replace(FRAMES[4], **changes)])
    assert caught.value.problem == problem
    assert "all.dcm frame 5" in str(caught.value)


def test_frames_without_a_place_are_refused(tmp_path: Path) -> None:
    def without(dataset: Any) -> None:
        del dataset.PerFrameFunctionalGroupsSequence

    with pytest.raises(DataError, match="nothing says where the frames"):
        opened(tmp_path, changed=without)


def test_a_report_beside_the_frames_is_left_alone(tmp_path: Path) -> None:
    write_report(tmp_path / "CT" / "report.dcm", "9.9.9")
    shuffled = [FRAMES[z] for z in (3, 0, 4, 2, 1)]
    np.testing.assert_array_equal(voxels_XYZ(opened(tmp_path, shuffled)), VOXELS_XYZ)


def test_several_files_with_frames_are_refused(tmp_path: Path) -> None:
    write_frames(tmp_path / "CT" / "a.dcm", FRAMES)
    with pytest.raises(DataError, match="must hold one volume"):
        opened(tmp_path)


def test_colours_are_refused(tmp_path: Path) -> None:
    def colours(dataset: Any) -> None:
        dataset.PhotometricInterpretation = "PALETTE COLOR"

    with pytest.raises(DataError, match="in colour"):
        opened(tmp_path, changed=colours)


def test_a_missing_element_is_an_error_of_the_file(tmp_path: Path) -> None:
    def without(dataset: Any) -> None:
        del dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence

    with pytest.raises(ValueError, match="ImagePositionPatient"):
        opened(tmp_path, changed=without)
