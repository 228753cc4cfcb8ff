"""All metrics, against MONAI, SimpleITK and BraTS' own procedure, and where a class is missing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from numpy.typing import NDArray
from scipy import ndimage

from segresmamba.evaluation.measures import METRICS, Empty, Scoring, measure
from segresmamba.evaluation.metrics import score

Mask = NDArray[np.bool_]
SPACING = (3.0, 0.5, 1.25)
SHAPE = (14, 22, 18)
DIAGONAL_MM = float(np.linalg.norm(np.multiply(SHAPE, SPACING)))


def blobs(seed: int, shift: int = 0) -> Mask:
    """Smooth blobs that touch no edge of the volume."""
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    smooth = ndimage.gaussian_filter(noise, 1.6)
    mask = np.zeros(SHAPE, np.bool_)
    inner = (slice(2, -2),) * 3
    mask[inner] = np.roll(smooth > np.quantile(smooth, 0.85), shift, 1)[inner]
    return mask


def values(prediction: Mask, reference: Mask, **settings: Any) -> dict[str, float]:
    """Every metric of one class."""
    scoring = Scoring(metrics=tuple(METRICS), **settings)
    maps = (mask.astype(np.uint8) for mask in (prediction, reference))
    return measure(*maps, {"blob": (1,)}, SPACING, scoring)["blob"]


PAIRS = [(blobs(seed, 2), blobs(seed)) for seed in range(3)]


# MONAI calls a function of its own in a way that it has deprecated.
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize(("prediction", "reference"), PAIRS)
def test_metrics_agree_with_monai(prediction: Mask, reference: Mask) -> None:
    from monai import metrics as monai

    y_pred, y = (torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference))
    both: dict[str, Any] = {"y_pred": y_pred, "y": y, "include_background": True}
    confusion = monai.get_confusion_matrix(y_pred, y, include_background=True)
    expected = {
        "dice": monai.compute_dice(**both),
        "iou": monai.compute_iou(**both),
        "hd95_mm": monai.compute_hausdorff_distance(**both, percentile=95, spacing=SPACING),
        "assd_mm": monai.compute_average_surface_distance(**both, symmetric=True, spacing=SPACING),
        "nsd": monai.compute_surface_dice(**both, class_thresholds=[1.3], spacing=SPACING),
        "sensitivity": monai.compute_confusion_matrix_metric("sensitivity", confusion),
        "precision": monai.compute_confusion_matrix_metric("precision", confusion),
    }
    found = values(prediction, reference, other_tolerance_mm=1.3)
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=1e-6), name


@pytest.mark.parametrize(("prediction", "reference"), PAIRS)
def test_metrics_agree_with_simpleitk(prediction: Mask, reference: Mask) -> None:
    found, expected = (
        sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (prediction, reference)
    )
    for image in (found, expected):
        image.SetSpacing(SPACING[::-1])
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(found, expected)
    surfaces = [sitk.LabelContour(image, fullyConnected=False) for image in (found, expected)]
    masks = [sitk.GetArrayViewFromImage(surface) > 0 for surface in surfaces]
    to_found, to_expected = (
        np.abs(
            sitk.GetArrayFromImage(
                sitk.SignedMaurerDistanceMap(surface, squaredDistance=False, useImageSpacing=True)
            )
        )
        for surface in surfaces
    )
    directed = to_expected[masks[0]], to_found[masks[1]]
    both = np.concatenate(directed)
    value = values(prediction, reference, other_tolerance_mm=1.3)
    assert value["dice"] == pytest.approx(overlap.GetDiceCoefficient())
    assert value["iou"] == pytest.approx(overlap.GetJaccardCoefficient())
    assert value["sensitivity"] == pytest.approx(1 - overlap.GetFalseNegativeError())
    assert value["hd95_mm"] == pytest.approx(max(np.percentile(one, 95) for one in directed))
    assert value["assd_mm"] == pytest.approx(both.mean())
    assert value["nsd"] == pytest.approx(np.mean(both <= 1.3))


def test_the_two_metrics_of_training_are_the_same_numbers() -> None:
    prediction, reference = PAIRS[0]
    (trained,) = score(prediction.astype(int), reference, {"blob": [1]}, SPACING).values()
    found = values(prediction, reference)
    assert (found["dice"], found["hd95_mm"]) == (trained.dice, trained.hd95_mm)
    assert (found["reference_ml"], found["prediction_ml"]) == (
        trained.reference_ml, trained.prediction_ml,
    )  # fmt: skip


def brats_2023(prediction: Mask, reference: Mask, dilation: int, minimum_mm3: float) -> list[float]:
    """Dice, F1 and HD95 by lesion: BraTS' procedure, lesion by lesion over whole volumes."""
    touching, dilate_by = np.ones((3, 3, 3)), ndimage.generate_binary_structure(3, 2)

    def dilate(mask: Mask) -> Mask:
        grown = ndimage.binary_dilation(mask, dilate_by, iterations=dilation) if dilation else mask
        return np.asarray(grown)

    places, count = ndimage.label(dilate(reference), touching)
    components, component_count = ndimage.label(prediction, touching)
    true, dice, hd95_mm, found, missed = set[int](), [], [], 0, 0
    for number in range(1, count + 1):
        lesion = reference & (places == number)
        hits = set(np.unique(components[dilate(lesion)]).tolist()) - {0}
        true |= hits
        if lesion.sum() * np.prod(SPACING) <= minimum_mm3:
            continue
        there = np.isin(components, list(hits))
        (scored,) = score(there.astype(int), lesion, {"lesion": [1]}, SPACING).values()
        dice.append(scored.dice)
        hd95_mm.append(scored.hd95_mm)
        found, missed = found + bool(hits), missed + (not hits)
    false = component_count - len(true)
    return [
        sum(dice) / (len(dice) + false),
        2 * found / (2 * found + missed + false),
        (sum(hd95_mm) + false * DIAGONAL_MM) / (len(dice) + false),
    ]


@pytest.mark.parametrize("dilation", [0, 1, 3])
@pytest.mark.parametrize("seeds", [(0, 0), (1, 2), (3, 4)])
def test_lesions_are_scored_as_brats_does(seeds: tuple[int, int], dilation: int) -> None:
    reference = blobs(seeds[0])
    prediction = blobs(seeds[1], 1)
    prediction[2:4, 2:4, 2:4] = True
    found = values(prediction, reference, lesion_dilation_voxels=dilation, lesion_minimum_mm3=40)
    assert [found[name] for name in ("lesion_dice", "lesion_f1", "lesion_hd95_mm")] == (
        pytest.approx(brats_2023(prediction, reference, dilation, 40))
    )


def cube(*corners: tuple[int, int]) -> Mask:
    """Cubes, each from one index up to another along all axes."""
    mask = np.zeros(SHAPE, np.bool_)
    for start, stop in corners:
        mask[(slice(start, stop),) * 3] = True
    return mask


def test_panoptic_quality_of_a_worked_example() -> None:
    reference = cube((1, 4), (6, 9))
    prediction = cube((1, 4), (11, 13))
    prediction[1:4, 1:4, 3] = False  # 18 of 27 voxels of the first; the second is missed
    found = values(prediction, reference)
    assert found["rq"] == pytest.approx(2 * 1 / (2 * 1 + 2))
    assert found["sq"] == pytest.approx(18 / 27)
    assert found["pq"] == pytest.approx(found["rq"] * found["sq"])


def test_half_an_overlap_is_no_match() -> None:
    reference = cube((2, 6))
    prediction = reference.copy()
    prediction[2:4] = False
    found = values(prediction, reference)
    assert (found["iou"], found["rq"], found["sq"]) == (0.5, 0, 0)


NAN = math.nan
BOTH = {  # neither volume has the class
    "challenge": {"dice": 1, "iou": 1, "nsd": 1, "sensitivity": 1, "precision": 1, "hd95_mm": 0,
                  "assd_mm": 0, "lesion_f1": 1, "lesion_dice": 1, "lesion_hd95_mm": 0, "pq": 1,
                  "relative_volume_error": 0, "volume_error_ml": 0},
    "nan": {"dice": NAN, "iou": NAN, "nsd": NAN, "sensitivity": NAN, "precision": NAN,
            "hd95_mm": NAN, "assd_mm": NAN, "lesion_f1": NAN, "lesion_dice": NAN,
            "lesion_hd95_mm": NAN, "pq": NAN, "relative_volume_error": NAN, "volume_error_ml": 0},
}  # fmt: skip
BOTH["zero-one"] = BOTH["challenge"]
ONE = {"dice": 0, "iou": 0, "nsd": 0, "lesion_f1": 0, "lesion_dice": 0, "rq": 0, "sq": 0, "pq": 0}
FAR = {"hd95_mm": DIAGONAL_MM, "assd_mm": DIAGONAL_MM}
NOWHERE = {"hd95_mm": NAN, "assd_mm": NAN}
MISSED = {  # only the reference has it
    "challenge": ONE | FAR | {"sensitivity": 0, "precision": 0, "relative_volume_error": -1},
    "nan": ONE | NOWHERE | {"sensitivity": 0, "precision": NAN, "relative_volume_error": -1},
    "zero-one": ONE | NOWHERE | {"sensitivity": 0, "precision": 0, "relative_volume_error": -1},
}
INVENTED = {  # only the prediction has it
    "challenge": ONE | FAR | {"sensitivity": 0, "precision": 0, "relative_volume_error": NAN},
    "nan": ONE | NOWHERE | {"sensitivity": NAN, "precision": 0, "relative_volume_error": NAN},
    "zero-one": ONE | NOWHERE | {"sensitivity": 0, "precision": 0, "relative_volume_error": NAN},
}


@pytest.mark.parametrize("empty", ["challenge", "nan", "zero-one"])
@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [(cube(), cube(), BOTH), (cube(), cube((2, 8)), MISSED), (cube((2, 8)), cube(), INVENTED)],
    ids=["neither", "missed", "invented"],
)
def test_a_missing_class_is_scored_by_the_chosen_convention(
    prediction: Mask, reference: Mask, expected: dict[str, dict[str, float]], empty: Empty
) -> None:
    found = values(prediction, reference, empty=empty)
    chosen = expected[empty]
    assert {name: found[name] for name in chosen} == pytest.approx(chosen, nan_ok=True)


def test_a_lesion_that_is_too_small_to_count_leaves_a_perfect_score() -> None:
    found = values(cube(), cube((5, 6)), lesion_minimum_mm3=50)
    assert (found["lesion_dice"], found["lesion_f1"], found["lesion_hd95_mm"]) == (1, 1, 0)
    assert found["dice"] == 0


def test_each_class_has_its_own_tolerance() -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[3:8, 3:8, 3:8], label[3:8, 12:17, 3:8] = 1, 2
    moved = np.roll(label, 2, 2)  # 2.5 mm
    scoring = Scoring(metrics=("nsd",), tolerance_mm={"loose": 2.5}, other_tolerance_mm=1.0)
    found = measure(moved, label, {"loose": (1,), "tight": (2,)}, SPACING, scoring)
    assert found["loose"]["nsd"] == 1
    assert found["tight"]["nsd"] < 1


@pytest.mark.parametrize("threads", [1, 3])
def test_overlapping_regions_are_measured_on_any_number_of_threads(threads: int) -> None:
    label = np.zeros(SHAPE, np.int16)
    label[3:11, 3:11, 3:11], label[5:8, 5:8, 5:8] = 2, 300
    without = np.where(label == 300, 2, label)
    members = {"whole": (2, 300), "core": (300,), "shell": (2,)}
    scoring = Scoring(metrics=tuple(METRICS))
    found = measure(without, label, members, SPACING, scoring, threads=threads)
    assert list(found) == list(members)
    assert found["whole"]["dice"] == 1
    assert found["core"]["dice"] == 0
    assert found["shell"]["precision"] == pytest.approx((8**3 - 27) / 8**3)
