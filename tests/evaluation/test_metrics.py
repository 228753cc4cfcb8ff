from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from segresmamba.evaluation.metrics import dice, hd95_mm, score

Mask = NDArray[np.bool_]
SPACING = (3.0, 0.5, 1.25)
masks = st_numpy.arrays(np.bool_, (5, 4, 6))


def brute_surface(mask: Mask) -> NDArray[np.float64]:
    """Voxels with a face neighbour that is not in the mask or not in the volume, in mm."""

    def inside(place: tuple[int, ...]) -> bool:
        within = all(0 <= i < size for i, size in zip(place, mask.shape, strict=True))
        return within and bool(mask[place])

    steps = [tuple(sign * (axis == i) for i in range(3)) for axis in range(3) for sign in (1, -1)]
    surface = [
        place
        for place in itertools.product(*map(range, mask.shape))
        if mask[place]
        and not all(
            inside(tuple(p + s for p, s in zip(place, step, strict=True))) for step in steps
        )
    ]
    return np.array(surface) * SPACING


def brute_hd95_mm(a: Mask, b: Mask) -> float:
    first, second = brute_surface(a), brute_surface(b)
    distances = np.linalg.norm(first[:, None] - second[None], axis=-1)
    return float(max(np.percentile(distances.min(axis), 95) for axis in (0, 1)))


@settings(deadline=None)
@given(masks.filter(np.any), masks.filter(np.any))
def test_hd95_agrees_with_brute_force_under_anisotropic_spacing(a: Mask, b: Mask) -> None:
    assert hd95_mm(a, b, SPACING) == pytest.approx(brute_hd95_mm(a, b), abs=1e-9)


@settings(deadline=None)
@given(masks, masks)
def test_metrics_are_symmetric(a: Mask, b: Mask) -> None:
    assert dice(a, b) == dice(b, a)
    assert hd95_mm(a, b, SPACING) == hd95_mm(b, a, SPACING)


@settings(deadline=None)
@given(masks)
def test_a_mask_agrees_with_itself(mask: Mask) -> None:
    assert dice(mask, mask) == 1.0
    assert hd95_mm(mask, mask, SPACING) == 0.0


def box(start: tuple[int, int, int], size: int = 4, shape: int = 20) -> Mask:
    mask = np.zeros((shape,) * 3, np.bool_)
    mask[tuple(slice(first, first + size) for first in start)] = True
    return mask


@pytest.mark.parametrize(("axis", "distance_mm"), [(0, 6.0), (1, 1.0), (2, 2.5)])
def test_a_shift_by_two_voxels_is_measured_in_mm_along_its_axis(
    axis: int, distance_mm: float
) -> None:
    moved = np.roll(box((5, 5, 5)), 2, axis)
    assert hd95_mm(box((5, 5, 5)), moved, SPACING) == distance_mm


def test_hd95_forgives_few_outliers_in_either_volume() -> None:
    reference = box((2, 2, 2), size=10)
    speck = reference.copy()
    speck[19, 19, 19] = True
    assert hd95_mm(speck, reference, SPACING) == 0.0
    assert hd95_mm(reference, speck, SPACING) == 0.0


def test_dice_of_half_overlapping_boxes() -> None:
    assert dice(box((5, 5, 5)), box((7, 5, 5))) == 0.5


def test_a_class_in_neither_volume_is_right() -> None:
    empty = np.zeros((6, 6, 6), np.uint8)
    found = score(empty, empty, {"ball": [1]}, SPACING)["ball"]
    assert (found.dice, found.hd95_mm, found.one_sided) == (1.0, 0.0, False)


@pytest.mark.parametrize("swap", [False, True], ids=["missed", "invented"])
def test_a_class_in_one_volume_alone_scores_worst(swap: bool) -> None:
    volumes = [np.zeros((20, 20, 20), np.uint8), box((5, 5, 5)).astype(np.uint8)]
    prediction, reference = reversed(volumes) if swap else volumes
    found = score(prediction, reference, {"ball": [1]}, SPACING)["ball"]
    assert found.dice == 0.0
    assert found.hd95_mm == pytest.approx(20 * np.linalg.norm(SPACING))
    assert found.one_sided


def test_the_penalty_of_a_brats_volume_is_that_of_the_challenge() -> None:
    empty = np.zeros((240, 240, 155), np.bool_)
    tumour = empty.copy()
    tumour[100:110, 100:110, 70:80] = True
    assert hd95_mm(empty, tumour, (1, 1, 1)) == pytest.approx(373.12866)


def test_overlapping_classes_are_unions_of_labels() -> None:
    reference, prediction = np.zeros((2, 4, 4, 4), np.int16)
    reference[:2], reference[0] = 2, 3
    prediction[:2] = 2  # the whole is right, its core is missed
    found = score(prediction, reference, {"whole": (2, 3), "core": (3,)}, (1.0, 1.0, 1.0))
    assert found["whole"].dice == 1.0
    assert found["core"].dice == 0.0
    assert found["whole"].reference_ml == pytest.approx(0.032)
    assert found["core"].prediction_ml == 0.0


def test_tensors_are_taken_as_well() -> None:
    label = torch.from_numpy(box((5, 5, 5)).astype(np.uint8))
    assert score(label, label.numpy(), {"ball": [1]}, SPACING)["ball"].dice == 1.0


def test_volumes_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) and \(2, 2, 3\)"):
        score(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)), {"ball": [1]}, SPACING)
