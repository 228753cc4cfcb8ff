"""Whole cases predicted and scored in the geometry of their original images.

`evaluate_cases` works on the cases that it is given, so the ranks can share a fold. Their results
are joined before they are summarised, written or printed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from heapq import nsmallest
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from rich.table import Table
from torch import nn

from segresmamba import data
from segresmamba.config import Config
from segresmamba.evaluation.metrics import Score, score
from segresmamba.inference.segmentation import segment_volume
from segresmamba.inference.sliding_window import Member, SlidingWindow
from segresmamba.storage.atomic import write_text
from segresmamba.task.classes import Classes

logger = logging.getLogger(__name__)


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


def evaluate_cases(
    network: nn.Module,
    dataset: data.Dataset,
    case_ids: Sequence[str],
    config: Config,
    device: torch.device,
    *,
    overlays: Path | None = None,
) -> list[CaseResult]:
    """Predict and score cases, one after the other.

    Args:
        network: The network, on `device`, in any mode; it has the same mode afterwards.
        dataset: The dataset of the cases.
        case_ids: The cases.
        config: The run's configuration: classes, window, precision, number of pictures.
        device: Where the network computes.
        overlays: Folder for pictures of the `validation.overlays` cases of the lowest Dice;
            created, and emptied of the pictures of an earlier evaluation.

    Returns:
        The results in the order of `case_ids`.
    """
    classes = Classes.from_labels(config, dataset.labels)
    sliding = SlidingWindow(
        [Member.from_config(network, config)],
        device=device,
        overlap=config.validation.overlap,
        window_batch=config.validation.window_batch,
    )
    results, worst = [], list[tuple[float, Callable[[], None]]]()
    for case_id in case_ids:
        case = dataset[case_id]
        image_CDHW, reference_DHW = case.crop((0, 0, 0), case.shape_DHW)
        found = segment_volume(
            sliding,
            classes,
            image_CDHW,
            case.normalisation_C4,
            transform=case.record.grid_transform,
        )
        ignored = dataset.manifest.storage.ignore_value
        result = CaseResult(case_id, _score_original(case, found.full_DHW, classes, ignored))
        logger.info("case %s: Dice %.4f", case_id, result.dice)
        results.append(result)
        if overlays is not None:
            from segresmamba.evaluation.overlays import draw_overlay  # matplotlib: not in training

            picture = partial(
                draw_overlay,
                overlays / f"{case_id}.png",
                image_CDHW[0].copy(),  # a view would keep all channels in memory
                reference_DHW,
                found.label_DHW,
                spacing_mm=case.spacing_mm,
                members=classes.members,
                dice={name: score.dice for name, score in result.scores.items()},
                title=f"{case_id}   mean Dice {result.dice:.3f}",
            )
            # Only the volumes of the worst cases stay in memory.
            worst = nsmallest(
                config.validation.overlays, [*worst, (result.dice, picture)], key=itemgetter(0)
            )
    if overlays is not None:
        _replace_pictures(overlays, [picture for _, picture in worst])
    return results


def _score_original(
    case: data.Case,
    full_DHW: np.ndarray[Any, Any],
    classes: Classes,
    ignored: int | None,
) -> dict[str, Score]:
    """Put a prediction into the original grid, and compare it with the source's labels."""
    predicted = np.asanyarray(case.original.restore(full_DHW).dataobj)
    reference = np.asanyarray(case.reference().dataobj)
    if ignored is not None:  # nobody knows what is there: neither side has a class there
        known = reference != ignored
        predicted, reference = predicted * known, reference * known
    return score(
        predicted,
        reference,
        classes.members,
        voxel_sizes(case.original.affine),
    )


def _replace_pictures(folder: Path, pictures: Sequence[Callable[[], None]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    for draw in pictures:
        draw()


def write_results(path: Path, results: Sequence[CaseResult], *, checkpoint: str) -> None:
    """Write the summary and every case as JSON, atomically.

    Args:
        path: The file.
        results: At least one result.
        checkpoint: The weights that were evaluated.
    """
    summary = Summary.from_results(results)
    content = {
        "checkpoint": checkpoint,
        "mean": asdict(summary.mean),
        "classes": {name: asdict(row) for name, row in summary.classes.items()},
        "cases": {
            result.case_id: {name: asdict(score) for name, score in result.scores.items()}
            for result in results
        },
    }
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def results_table(results: Sequence[CaseResult]) -> Table:
    """The summary for a terminal, with the worst case of each class, to be looked at first."""
    summary = Summary.from_results(results)
    table = Table(title=f"{len(results)} cases, whole volumes, original geometry")
    table.add_column("class")
    table.add_column("Dice", justify="right")
    table.add_column("HD95 (mm)", justify="right")
    table.add_column("worst case")
    for name, row in summary.classes.items():
        worst = min(results, key=lambda result: result.scores[name].dice)
        found = f"{worst.case_id} ({worst.scores[name].dice:.3f})"
        table.add_row(name, f"{row.dice:.3f}", f"{row.hd95_mm:.2f}", found)
    table.add_section()
    worst = min(results, key=lambda result: result.dice)
    table.add_row(
        "mean",
        f"{summary.mean.dice:.3f}",
        f"{summary.mean.hd95_mm:.2f}",
        f"{worst.case_id} ({worst.dice:.3f})",
    )
    if summary.mean.one_sided:
        table.caption = (
            f"a class was missed or invented in {summary.mean.one_sided} comparisons: "
            "Dice 0, HD95 the diagonal of the volume"
        )
    return table
