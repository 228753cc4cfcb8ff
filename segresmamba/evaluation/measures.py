"""All metrics of an evaluation, by name, and what they are where a structure is missing.

docs/evaluation.md has the definitions in full, with their sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat

from segresmamba.config.section import Section
from segresmamba.evaluation.lesions import Instances, Lesions
from segresmamba.evaluation.mask_pairs import ClassPairs, MaskPair

Kind = Literal["score", "distance", "volume"]
Empty = Literal["challenge", "nan", "zero-one"]


@dataclass(frozen=True)
class Metric:
    """A metric, and how it is shown."""

    title: str
    kind: Kind
    """score: 0 to 1, the higher the better; distance: the lower the better; volume: no order."""
    definition: str
    value: Callable[[_Measured], float]
    """nan where it is not defined."""

    @property
    def decimals(self) -> int:
        """Digits after the point in a table."""
        return 3 if self.kind == "score" else 2


class _Measured:
    """A class of a case. What several metrics need is computed once, if it is needed."""

    def __init__(self, pair: MaskPair, name: str, scoring: Scoring) -> None:
        self.pair = pair
        self.tolerance_mm = scoring.tolerance_mm.get(name, scoring.other_tolerance_mm)
        self._scoring = scoring

    @cached_property
    def lesions(self) -> Lesions:
        scoring = self._scoring
        return Lesions(self.pair, scoring.lesion_dilation_voxels, scoring.lesion_minimum_mm3)

    @cached_property
    def instances(self) -> Instances:
        return Instances.from_pair(self.pair)

    @property
    def both_voxels(self) -> int:
        """Voxels of the prediction plus those of the reference."""
        return self.pair.predicted_voxels + self.pair.reference_voxels

    @property
    def both_ml(self) -> tuple[float, float]:
        """Volumes of the prediction and the reference."""
        pair = self.pair
        return pair.voxel_ml * pair.predicted_voxels, pair.voxel_ml * pair.reference_voxels


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


METRICS: Mapping[str, Metric] = {
    "dice": Metric(
        "Dice", "score", "2 TP / (2 TP + FP + FN), by voxels",
        lambda of: _ratio(2 * of.pair.common_voxels, of.both_voxels),
    ),
    "hd95_mm": Metric(
        "HD95 (mm)", "distance", "95th percentile Hausdorff distance, the larger of two directions",
        lambda of: of.pair.surfaces.hd95_mm if of.pair.surfaces else math.nan,
    ),
    "nsd": Metric(
        "NSD", "score", "normalised surface Dice: part of both surfaces within the tolerance",
        lambda of: of.pair.surfaces.within(of.tolerance_mm) if of.pair.surfaces
        else 0.0 if of.both_voxels else math.nan,
    ),
    "assd_mm": Metric(
        "ASSD (mm)", "distance", "average symmetric surface distance, over both surfaces",
        lambda of: of.pair.surfaces.mean_mm if of.pair.surfaces else math.nan,
    ),
    "iou": Metric(
        "IoU", "score", "TP / (TP + FP + FN), by voxels",
        lambda of: _ratio(of.pair.common_voxels, of.both_voxels - of.pair.common_voxels),
    ),
    "sensitivity": Metric(
        "Sensitivity", "score", "TP / (TP + FN), by voxels",
        lambda of: _ratio(of.pair.common_voxels, of.pair.reference_voxels),
    ),
    "precision": Metric(
        "Precision", "score", "TP / (TP + FP), by voxels",
        lambda of: _ratio(of.pair.common_voxels, of.pair.predicted_voxels),
    ),
    "lesion_dice": Metric(
        "Lesion Dice", "score", "mean Dice of lesions and false positives (BraTS 2023)",
        lambda of: of.lesions.dice,
    ),
    "lesion_hd95_mm": Metric(
        "Lesion HD95 (mm)", "distance", "mean HD95 of lesions and false positives (BraTS 2023)",
        lambda of: of.lesions.hd95_mm,
    ),
    "lesion_f1": Metric(
        "Lesion F1", "score", "2 TP / (2 TP + FP + FN), by lesions (BraTS 2023)",
        lambda of: of.lesions.f1,
    ),
    "rq": Metric(
        "RQ", "score", "recognition quality: F1 of components matched by IoU > 0.5 (panoptica)",
        lambda of: of.instances.recognition,
    ),
    "sq": Metric(
        "SQ", "score", "segmentation quality: mean IoU of matched components (panoptica)",
        lambda of: of.instances.segmentation,
    ),
    "pq": Metric(
        "PQ", "score", "panoptic quality: RQ times SQ (panoptica)",
        lambda of: of.instances.recognition * of.instances.segmentation,
    ),
    "reference_ml": Metric(
        "Reference (ml)", "volume", "volume in the reference", lambda of: of.both_ml[1]
    ),
    "prediction_ml": Metric(
        "Prediction (ml)", "volume", "volume in the prediction", lambda of: of.both_ml[0]
    ),
    "volume_error_ml": Metric(
        "Volume error (ml)", "volume", "volume in the prediction minus volume in the reference",
        lambda of: of.both_ml[0] - of.both_ml[1],
    ),
    "relative_volume_error": Metric(
        "Relative volume error", "volume", "volume error / volume in the reference",
        lambda of: _ratio(of.both_ml[0] - of.both_ml[1], of.both_ml[1]),
    ),
}  # fmt: skip
"""By the names that results have. TP, FP and FN are true positives, false positives and misses."""

ALWAYS = ("dice", "hd95_mm", "reference_ml", "prediction_ml")
"""Metrics that every result has: reports and pictures need them."""
LESION_METRICS = ("lesion_dice", "lesion_hd95_mm", "lesion_f1", "rq", "sq", "pq")
USUAL = tuple(name for name in METRICS if name not in LESION_METRICS)


class Scoring(Section):
    """How predictions are scored; it is written into the results."""

    metrics: tuple[str, ...] = USUAL
    """Names of the metrics, keys of `METRICS`; those of `ALWAYS` among them."""
    empty: Empty = "challenge"
    """What a class scores that is missing from a volume. challenge: from both volumes 1 (distances
    0), from one of them 0 (distances: the diagonal of the volume), as BraTS does. nan: what the
    formula gives; where it gives nothing, the case is left out of the mean, as nnU-Net does.
    zero-one: as challenge, but a distance that does not exist is left out."""
    tolerance_mm: Mapping[str, PositiveFloat] = {}
    """Tolerance of the normalised surface Dice for single classes."""
    other_tolerance_mm: PositiveFloat = 1.0
    """Tolerance for the other classes."""
    lesion_dilation_voxels: Annotated[int, Field(ge=0)] = 3
    """How far a lesion reaches, see `lesions`. BraTS 2023: 3; for metastases and meningioma 1."""
    lesion_minimum_mm3: Annotated[float, Field(ge=0)] = 50.0
    """Lesions up to this size are left out. BraTS 2023: 50; for metastases 2."""


def measure(
    prediction: Any,
    reference: Any,
    members: Mapping[str, Sequence[int]],
    spacing_mm: Sequence[float],
    scoring: Scoring,
    *,
    threads: int = 1,
) -> dict[str, dict[str, float]]:
    """Compare two label maps, class by class.

    Args:
        prediction: Label values on any three axes.
        reference: Label values of the same shape.
        members: Label values that make up each class; classes may overlap.
        spacing_mm: Size of a voxel along each axis of the volumes.
        scoring: What is computed.
        threads: Classes that are compared at the same time.

    Returns:
        The metrics of each class by their names; nan where one is not defined.

    Raises:
        ValueError: If the shapes differ or are not three-dimensional.
    """
    by_lesion = any(name.startswith("lesion") for name in scoring.metrics)
    margin = scoring.lesion_dilation_voxels if by_lesion else 0
    pairs = ClassPairs(prediction, reference, spacing_mm, margin)

    def of_class(item: tuple[str, Sequence[int]]) -> dict[str, float]:
        measured = _Measured(pairs[item[1]], item[0], scoring)
        return {name: _by_convention(name, measured, scoring.empty) for name in scoring.metrics}

    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(members, pool.map(of_class, members.items()), strict=True))


def _by_convention(name: str, of: _Measured, empty: Empty) -> float:
    """The value of a metric; where it is not defined, what the convention puts in its place."""
    metric = METRICS[name]
    value = metric.value(of)
    if empty == "nan" or not math.isnan(value):
        return value
    # Without a lesion that counts and without a false one, there is nothing that was missed.
    nothing = not of.both_voxels or name in LESION_METRICS
    if metric.kind == "score":
        return 1.0 if nothing else 0.0
    if nothing:
        return 0.0
    return of.pair.diagonal_mm if metric.kind == "distance" and empty == "challenge" else math.nan
