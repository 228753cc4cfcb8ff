from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from segresmamba.evaluation.overlays import draw_overlay

Array = NDArray[np.float64]


def draw(
    path: Path,
    image: NDArray[np.float32],
    reference: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    spacing_mm: tuple[float, float, float] = (1, 1, 1),
    classes: int = 1,
) -> list[list[Array]]:
    """The panels of the picture, 3 rows of 3 RGB arrays; for volumes that are cubes in mm."""
    members = {f"class {value}": (value,) for value in range(1, classes + 1)}
    draw_overlay(
        path,
        image,
        reference,
        prediction,
        spacing_mm=spacing_mm,
        members=members,
        dice=dict.fromkeys(members, 0.5),
        title="a case",
    )
    picture = imread(path)[..., :3]
    # Inches at 130 dots per inch: 0.85 for the title, 0.2 for the names of the rows, 0.4 beside and
    # 0.24 below each panel; the rest is for the panels.
    top, left, beside, below = 110.5, 26.0, 52.0, 31.2
    side = (picture.shape[1] - left - 4 * beside) / 3
    return [
        [
            picture[
                round(top + row * (side + below)) : round(top + row * (side + below) + side),
                round(left + beside + column * (side + beside)) : round(
                    left + (column + 1) * (side + beside)
                ),
            ]
            for column in range(3)
        ]
        for row in range(3)
    ]


def colourful(panel: Array) -> NDArray[np.bool_]:
    shown: NDArray[np.bool_] = np.ptp(panel, axis=-1) > 0.15
    return shown


def noise(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An image without dark margins, which would be cut off."""
    return np.random.default_rng(0).uniform(50, 150, shape).astype(np.float32)


def cube(shape: tuple[int, int, int], *corner: slice) -> NDArray[np.uint8]:
    label = np.zeros(shape, np.uint8)
    label[corner] = 1
    return label


def test_the_patients_right_front_and_top_are_left_and_up(tmp_path: Path) -> None:
    shape, corner = (40, 40, 40), slice(28, 34)  # superior, anterior, right of the centre
    label = cube(shape, corner, corner, corner)
    panels = draw(tmp_path / "a.png", noise(shape), label, label)
    for panel in panels[1]:
        rows, columns = np.nonzero(colourful(panel))
        height, width = panel.shape[:2]
        assert rows.size > 0
        assert rows.max() < height / 2
        assert columns.max() < width / 2


def test_the_image_above_stays_bare(tmp_path: Path) -> None:
    middle = slice(15, 25)
    label = cube((40, 40, 40), middle, middle, middle)
    above, below, errors = draw(tmp_path / "a.png", noise(label.shape), label, label)
    assert not any(colourful(panel).any() for panel in above)
    assert all(colourful(panel).any() for panel in below)
    assert not any(colourful(panel).any() for panel in errors)  # there is none


def test_errors_have_colours_of_their_own(tmp_path: Path) -> None:
    middle, left = slice(10, 30), slice(10, 20)
    whole = cube((40, 40, 40), middle, middle, middle)
    half = cube((40, 40, 40), middle, middle, left)
    image = noise(whole.shape)
    shown = {
        name: draw(tmp_path / "a.png", image, reference, prediction, classes=2)[2][0]
        for name, (reference, prediction) in {
            "missed": (whole, half),
            "too much": (half, whole),
            "another class": (whole, 2 * whole - half),
        }.items()
    }
    for name, (red, blue) in {
        "missed": (True, False), "too much": (False, True), "another class": (True, True),
    }.items():  # fmt: skip
        panel = shown[name]
        colour = np.median(panel[colourful(panel)], axis=0)
        assert (colour[0] > 0.6, colour[2] > 0.6) == (red, blue), name
        assert colourful(panel).mean() == pytest.approx(0.25 * 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("tissue", "grey"), [(40.0, 0.5), (400.0, 0.5), (-800.0, 0.37)], ids=["soft", "bone", "lung"]
)
def test_the_window_of_ct_is_that_of_the_labelled_tissue(
    tmp_path: Path, tissue: float, grey: float
) -> None:
    middle = slice(10, 30)
    label = cube((40, 40, 40), middle, middle, middle)
    image = np.where(label == 1, tissue, -1000.0).astype(np.float32)
    image[5:35, 5:35, 5:35][label[5:35, 5:35, 5:35] == 0] = 0.0
    panel = draw(tmp_path / "a.png", image, label, label)[0][0]
    centre = panel.shape[0] // 2
    assert panel[centre, centre, 0] == pytest.approx(grey, abs=0.01)


def test_voxels_keep_their_true_aspect(tmp_path: Path) -> None:
    label = cube((8, 40, 80), slice(2, 6), slice(10, 30), slice(20, 60))  # 20 mm along each axis
    image = noise(label.shape)
    for panel in draw(tmp_path / "a.png", image, label, label, spacing_mm=(5, 1, 0.5))[1]:
        rows, columns = np.nonzero(colourful(panel))
        assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=4)
        assert np.ptp(rows) == pytest.approx(panel.shape[0] / 2, rel=0.1)


def test_reference_and_prediction_can_be_told_apart(tmp_path: Path) -> None:
    image = noise((40, 40, 40))
    middle = slice(10, 30)
    label = cube(image.shape, middle, middle, middle)
    line, area = (
        draw(tmp_path / "a.png", image, reference, prediction)[1][0]
        for reference, prediction in [(label, 0 * label), (0 * label, label)]
    )
    side = line.shape[0]
    centre = slice(int(0.4 * side), int(0.6 * side))
    assert colourful(area)[centre, centre].all()
    assert not colourful(line)[centre, centre].any()
    assert colourful(line).any()


def test_a_small_class_chooses_the_plane_as_much_as_a_large_one(tmp_path: Path) -> None:
    label = np.zeros((40, 40, 40), np.uint8)
    label[5:35, 5:35, 5:35] = 1
    label[30, 30, 30] = 2  # one voxel, in planes that hold no more of class 1 than the others
    _, below, _ = draw(tmp_path / "a.png", noise(label.shape), label, label, classes=2)
    orange = [(panel[..., 0] - panel[..., 2] > 0.15).any() for panel in below]
    assert orange == [True, True, True]


@pytest.mark.parametrize("fill", [0, 1], ids=["nothing", "everything"])
def test_a_case_without_any_border_is_drawn(tmp_path: Path, fill: int) -> None:
    label = np.full((12, 12, 12), fill, np.uint8)
    draw(tmp_path / "a.png", np.zeros(label.shape, np.float32), label, label)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_many_classes_make_the_legend_longer_not_the_picture_wider(tmp_path: Path) -> None:
    label = np.arange(30**3, dtype=np.uint8).reshape(30, 30, 30) % 25
    image = noise(label.shape)
    draw(tmp_path / "few.png", image, label, label, classes=2)
    draw(tmp_path / "many.png", image, label, label, classes=24)
    few, many = (imread(tmp_path / f"{name}.png").shape for name in ("few", "many"))
    assert many[0] > few[0]
    assert many[1] == few[1]


@pytest.mark.parametrize("shape", [(1, 12, 14), (12, 1, 14), (12, 14, 1), (1, 1, 14)])
def test_a_volume_of_one_slice_is_drawn(tmp_path: Path, shape: tuple[int, ...]) -> None:
    reference = np.zeros(shape, np.uint8)
    reference[..., : shape[2] // 2 + 1, :][..., : max(1, shape[2] // 2)] = 1
    draw(tmp_path / "case.png", noise(shape), reference, np.zeros_like(reference))
    assert (tmp_path / "case.png").stat().st_size


def test_a_long_narrow_volume_makes_no_endless_picture(tmp_path: Path) -> None:
    shape = (400, 8, 8)
    reference = np.zeros(shape, np.uint8)
    reference[100:200, 2:6, 2:6] = 1
    draw(tmp_path / "case.png", noise(shape), reference, reference, spacing_mm=(5, 1, 1))
    assert imread(tmp_path / "case.png").shape[0] < 6000


def test_long_names_of_classes_stay_within_the_picture(tmp_path: Path) -> None:
    reference = np.zeros((12, 12, 12), np.uint8)
    reference[4:8, 4:8, 4:8] = 1
    members = {
        f"a structure with a name that is quite long, {value}": (value,) for value in (1, 2, 3)
    }
    draw_overlay(
        tmp_path / "case.png",
        noise(reference.shape),
        reference,
        reference,
        spacing_mm=(1, 1, 1),
        members=members,
        dice=dict.fromkeys(members, 0.5),
        title="a case",
    )
    picture = imread(tmp_path / "case.png")[..., :3]
    edges = np.concatenate([picture[-130:, :4], picture[-130:, -4:]])
    assert edges.max() < 0.2
