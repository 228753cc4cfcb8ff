"""Whole cases predicted and scored in the geometry of their original images, during training.

`evaluate_cases` works on the cases that it is given, so the ranks can share a fold. Their results
are joined before they are summarised.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from torch import nn

from segresmamba import data
from segresmamba.config import Config
from segresmamba.evaluation.metrics import Score, score
from segresmamba.evaluation.structures import warn_of_shear
from segresmamba.inference.segmentation import segment_volume
from segresmamba.inference.sliding_window import Member, SlidingWindow
from segresmamba.task.classes import Classes

logger = logging.getLogger(__name__)

Volume = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CaseResult:
    """The scores of one case."""

    case_id: str
    scores: Mapping[str, Score]
    """Score of each class, in the order of the report."""

    @property
    def dice(self) -> float:
        """Mean over the classes."""
        return fmean(score.dice for score in self.scores.values())


@dataclass(frozen=True)
class Mean:
    """Scores of one class averaged over cases, or of all classes averaged over them."""

    dice: float
    hd95_mm: float
    one_sided: int
    """Comparisons in which only the reference or only the prediction has the class. Dice is then 0,
    and HD95 the diagonal of the volume (see `metrics`)."""


@dataclass(frozen=True)
class Summary:
    """Mean scores of each foreground class over the cases, and the mean over the classes."""

    classes: Mapping[str, Mean]
    mean: Mean

    @classmethod
    def from_results(cls, results: Sequence[CaseResult]) -> Summary:
        """Summarise at least one result; all have the same classes."""
        classes = {}
        for name in results[0].scores:
            scores = [result.scores[name] for result in results]
            classes[name] = Mean(
                dice=fmean(score.dice for score in scores),
                hd95_mm=fmean(score.hd95_mm for score in scores),
                one_sided=sum(score.one_sided for score in scores),
            )
        mean = Mean(
            dice=fmean(row.dice for row in classes.values()),
            hd95_mm=fmean(row.hd95_mm for row in classes.values()),
            one_sided=sum(row.one_sided for row in classes.values()),
        )
        return cls(classes, mean)

    def metrics(self) -> dict[str, float]:
        """Flat names for a tracker: `dice/mean`, `dice/<class>`, `hd95_mm/mean` ..."""
        rows = {"mean": self.mean, **self.classes}
        return {f"dice/{name}": row.dice for name, row in rows.items()} | {
            f"hd95_mm/{name}": row.hd95_mm for name, row in rows.items()
        }


@dataclass(frozen=True)
class PredictedCase:
    """A case and what the network found in it."""

    case: data.Case
    image_DHW: Volume
    """Its first channel, on the grid of the store, as the next two."""
    reference_DHW: Volume
    prediction_DHW: Volume
    predicted_XYZ: Volume
    """The prediction in the original geometry. Voxels without annotation are 0, as in the next."""
    expected_XYZ: Volume
    """The label as its file has it."""
    spacing_XYZ_mm: Sequence[float]
    """Size of a voxel in the original geometry."""


def predict_case(
    sliding: SlidingWindow, classes: Classes, dataset: data.Dataset, case_id: str
) -> PredictedCase:
    """Predict a case and put it back into its original geometry.

    Args:
        sliding: The network, or several whose outputs are averaged.
        classes: What their outputs mean.
        dataset: The dataset of the case.
        case_id: The case.

    Raises:
        DataError: If the case cannot be read.
    """
    case = dataset[case_id]
    image_CDHW, reference_DHW = case.read()
    found = segment_volume(
        sliding,
        classes,
        image_CDHW,
        case.normalisation_C4,
        transform=case.record.grid_transform,
    )
    warn_of_shear(case.original.affine, case_id)
    predicted = np.asanyarray(case.original.restore(found.full_DHW).dataobj)
    expected = np.asanyarray(case.reference().dataobj)
    ignored = dataset.manifest.storage.ignore_value
    if ignored is not None:  # nobody knows what is there: neither side has a class there
        known = expected != ignored
        predicted, expected = predicted * known, expected * known
    return PredictedCase(
        case,
        image_CDHW[0],
        reference_DHW,
        found.label_DHW,
        predicted,
        expected,
        voxel_sizes(case.original.affine),
    )


def sliding_window(
    networks: Sequence[tuple[nn.Module, Config]], device: torch.device
) -> SlidingWindow:
    """Networks with the windows and the precision of their training, and its overlap.

    Args:
        networks: Networks on `device`, each with the configuration that it was trained with. They
            may be in any mode, and have the same mode afterwards.
        device: Where they compute.
    """
    validations = [config.validation for _, config in networks]
    return SlidingWindow(
        [Member.from_config(network, config) for network, config in networks],
        device=device,
        overlap=max(one.overlap for one in validations),
        window_batch=min(one.window_batch for one in validations),
    )


def evaluate_cases(
    network: nn.Module,
    dataset: data.Dataset,
    case_ids: Sequence[str],
    config: Config,
    device: torch.device,
) -> list[CaseResult]:
    """Predict cases, one after the other, and score them by the two metrics of training.

    Args:
        network: The network, on `device`, in any mode; it has the same mode afterwards.
        dataset: The dataset of the cases.
        case_ids: The cases.
        config: The run's configuration: classes, window, precision.
        device: Where the network computes.

    Returns:
        The results in the order of `case_ids`.
    """
    classes = Classes.from_labels(config, dataset.labels)
    sliding = sliding_window([(network, config)], device)
    results = []
    for case_id in case_ids:
        one = predict_case(sliding, classes, dataset, case_id)
        volumes = one.predicted_XYZ, one.expected_XYZ
        result = CaseResult(case_id, score(*volumes, classes.members, one.spacing_XYZ_mm))
        logger.info("case %s: Dice %.4f", case_id, result.dice)
        results.append(result)
    return results
