"""DICOM segmentation objects as labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segresmamba.data import convert, open_dataset, read_volume
from segresmamba.data.volumes.label import read_label
from segresmamba.errors import DataError
from tests.data.dicom import BINARY, CONTOURS, LABEL_MAP, FrameSpec, write_frames
from tests.data.raw import describe, write_nifti, write_series

LABELS = {"background": 0, "liver": 3, "Tumour": 7}
SHAPE = (8, 7, 6)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image") / "CT"
    write_series(folder, np.random.default_rng(0).integers(1, 900, SHAPE).astype(np.int16))
    return folder


@pytest.fixture
def expected_XYZ() -> np.ndarray:
    label_XYZ = np.zeros(SHAPE, np.int16)
    label_XYZ[1:5, 2:6, 1:4] = 3
    label_XYZ[5:8, 2:4, 3:5] = 7
    return label_XYZ


def frames(label_XYZ: np.ndarray, values: dict[int, int]) -> list[FrameSpec]:
    """A frame for each slice that shows a segment, segments with the highest number first."""
    return [
        FrameSpec(label_XYZ[..., z] == value, 2.0 * z, segment=number)
        for number, value in sorted(values.items(), reverse=True)
        for z in range(label_XYZ.shape[2])
        if (label_XYZ[..., z] == value).any()
    ]


def labelled(image: Path, path: Path, labels: dict[str, int] = LABELS) -> np.ndarray:
    """The label on the axes of the files."""
    label_DHW, _ = read_label(path, labels, read_volume([image]).original)
    return label_DHW.transpose(2, 1, 0)[::-1, ::-1]  # from RAS to LPS


@pytest.mark.parametrize("numbers", [(1, 2), (2, 1)])
def test_segments_are_known_by_name_and_frames_by_place(
    image: Path, expected_XYZ: np.ndarray, tmp_path: Path, numbers: tuple[int, int]
) -> None:
    liver, tumour = numbers
    path = write_frames(
        tmp_path / "label.dcm",
        frames(expected_XYZ, {liver: 3, tumour: 7}),
        BINARY,
        bits=1,
        segments={liver: "Liver", tumour: "tumour "},
    )
    found_XYZ = labelled(image, path)
    np.testing.assert_array_equal(found_XYZ, expected_XYZ)
    assert found_XYZ.dtype == np.uint8


def test_a_label_map_is_read(image: Path, expected_XYZ: np.ndarray, tmp_path: Path) -> None:
    specs = [FrameSpec(expected_XYZ[..., z], 2.0 * z) for z in range(1, 5)]
    names = {0: "nothing", 3: "tumour", 7: "liver"}
    path = write_frames(tmp_path / "label" / "x", specs, LABEL_MAP, bits=8, segments=names)
    found_XYZ = labelled(image, path.parent)
    np.testing.assert_array_equal(found_XYZ == 7, expected_XYZ == 3)
    np.testing.assert_array_equal(found_XYZ == 3, expected_XYZ == 7)


def test_frames_may_be_turned(image: Path, expected_XYZ: np.ndarray, tmp_path: Path) -> None:
    # Rows run along y and columns along -x, from the corner where x is greatest.
    turned = [
        FrameSpec(
            (expected_XYZ[::-1, :, z] == 3).T,
            2.0 * z,
            position=(-10 + SHAPE[0] - 1, -20),
            orientation=(0, 1, 0, -1, 0, 0),
            segment=1,
            pixel_mm=[1.0, 1.5],
        )
        for z in range(1, 4)
    ]
    path = write_frames(tmp_path / "label.dcm", turned, BINARY, 1, segments={1: "liver"})
    np.testing.assert_array_equal(labelled(image, path) == 3, expected_XYZ == 3)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"z_mm": 7.0}, "another grid"),
        ({"position": (-10.0, -20.4)}, "another grid"),
        ({"pixel_mm": [3.0, 2.0]}, "another grid"),
        ({"z_mm": 12.0}, "reaches out of its image"),
        ({"position": (-13.0, -20.0)}, "reaches out of its image"),
        ({"segment": 2}, "segments overlap"),
    ],
)
def test_frames_that_do_not_fit_the_image_are_refused(
    image: Path, expected_XYZ: np.ndarray, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    one = FrameSpec(expected_XYZ[..., 3] == 3, 6.0, segment=1)
    path = write_frames(
        tmp_path / "label.dcm",
        [replace(one, **changes), one],
        BINARY,
        bits=1,
        segments={1: "liver", 2: "tumour"},
    )
    with pytest.raises(DataError, match=problem) as caught:
        labelled(image, path)
    assert "frame" in caught.value.got


def test_an_undeclared_segment_is_named(
    image: Path, expected_XYZ: np.ndarray, tmp_path: Path
) -> None:
    specs = frames(expected_XYZ, {1: 3})
    path = write_frames(tmp_path / "label.dcm", specs, BINARY, 1, segments={1: "spleen"})
    with pytest.raises(DataError, match="undeclared name") as caught:
        labelled(image, path)
    assert caught.value.got == "spleen"


def test_probabilities_are_refused(image: Path, tmp_path: Path) -> None:
    def fractional(dataset: Any) -> None:
        dataset.SegmentationType, dataset.MaximumFractionalValue = "FRACTIONAL", 255

    shares_XY = np.zeros(SHAPE[:2], np.uint8)
    shares_XY[2:4, 2:4] = 255
    sound = FrameSpec(shares_XY, 2.0, segment=1)
    words: Any = {"bits": 8, "segments": {1: "liver"}, "changed": fractional}
    path = write_frames(tmp_path / "sound.dcm", [sound], BINARY, **words)
    assert (labelled(image, path) == 3).sum() == 4
    path = write_frames(
        tmp_path / "half.dcm", [sound, FrameSpec(shares_XY // 2, 4, segment=1)], BINARY, **words
    )
    with pytest.raises(DataError, match="fractions"):
        labelled(image, path)


def test_contours_are_refused_with_a_way_out(
    image: Path, expected_XYZ: np.ndarray, tmp_path: Path
) -> None:
    path = write_frames(tmp_path / "label.dcm", frames(expected_XYZ, {1: 3}), CONTOURS, bits=8)
    with pytest.raises(DataError, match="contours") as caught:
        labelled(image, path)
    assert "3D Slicer" in caught.value.remedy


def test_a_dataset_may_have_labels_of_every_kind(
    image: Path, expected_XYZ: np.ndarray, tmp_path: Path
) -> None:
    source = tmp_path / "raw"
    for case in ("a", "b", "c"):
        (source / case).mkdir(parents=True)
        (source / case / "CT").symlink_to(image)
    segments = {1: "liver", 2: "tumour"}
    specs = frames(expected_XYZ, {1: 3, 2: 7})
    write_frames(source / "a" / "label.dcm", specs, BINARY, 1, segments)
    write_frames(source / "b" / "label" / "1.2.3", specs, BINARY, 1, segments)
    affine = read_volume([image]).original.affine
    write_nifti(source / "c" / "label.nii.gz", expected_XYZ, affine)
    describe(source, channel_names={"0": "CT"}, labels=LABELS)
    convert(source, tmp_path / "store", format="dicom")
    dataset = open_dataset(tmp_path / "store")
    digests = {dataset[case].record.label_digest for case in "abc"}
    assert len(digests) == 1
    assert dataset["a"].record.class_voxels == {3: 4 * 4 * 3, 7: 3 * 2 * 2}
