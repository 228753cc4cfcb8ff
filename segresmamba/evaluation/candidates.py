"""Candidates of a selection: runs of one network and settings, over the folds of a store."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from segresmamba.config import experiment
from segresmamba.errors import ConfigError
from segresmamba.evaluation.measures import Scoring
from segresmamba.evaluation.results import CaseValues
from segresmamba.evaluation.runs import HeldOut, KeptPredictions, evaluate_run
from segresmamba.inference.trained import TrainedModel, require_same_task, trained_runs
from segresmamba.storage.json_text import parse_json
from segresmamba.storage.run_folder import RunFolder

logger = logging.getLogger(__name__)

SCORING = Scoring(metrics=("dice", "hd95_mm", "reference_ml", "prediction_ml"))
"""What candidates are compared by. A missing structure counts as the worst."""
_OF_A_RUN = ("seed", "train.fold", "data.store")
"""Settings in which the runs of a candidate may differ."""

Progress = Callable[[str], Callable[[int, int], None]]


@dataclass(frozen=True)
class Candidate:
    """Runs that are used together: their outputs are averaged."""

    name: str
    models: tuple[TrainedModel, ...]
    cases: Mapping[str, CaseValues]
    """The scores of each case by the runs that had held it out."""

    @cached_property
    def folds(self) -> dict[int, list[TrainedModel]]:
        """The runs of each fold."""
        folds: dict[int, list[TrainedModel]] = defaultdict(list)
        for model in self.models:
            folds[model.config.train.fold or 0].append(model)
        return dict(sorted(folds.items()))

    def mean(self, case_id: str, metric: str) -> float:
        """A metric of a case, the mean over the classes."""
        return fmean(values[metric] for values in self.cases[case_id].values())

    def predicted(
        self, kept: KeptPredictions | None, workers: int, progress: Progress
    ) -> dict[str, CaseValues]:
        """Predict each case by the runs that had held it out, and score it."""
        cases: dict[str, CaseValues] = {}
        for fold, models in self.folds.items():
            held_out = HeldOut.of_runs([run_of(model) for model in models])
            told = progress(f"{self.name}, fold {fold}")
            cases |= held_out.score(SCORING, kept, workers, told).cases
        return cases


def run_of(model: TrainedModel) -> RunFolder:
    """The run that a model's weights lie in."""
    return RunFolder(model.weights.parents[1])


def find_candidates(targets: Sequence[Path], workers: int, progress: Progress) -> list[Candidate]:
    """Group runs that differ only in fold and seed. A run that is not evaluated yet is evaluated.

    Args:
        targets: Run folders, folders of runs, or sweeps.
        workers: Classes of a case that are scored at the same time.
        progress: Given what is evaluated, returns what is called with the numbers of cases.

    Raises:
        UserError: If there is no trained run, one held nothing out, or they do not have the same
            classes, channels and preprocessing.
    """
    folders = [
        run
        for target in targets
        for run in ([target] if RunFolder(target).config.exists() else trained_runs(target))
    ]
    runs = [RunFolder(folder) for folder in dict.fromkeys(one.resolve() for one in folders)]
    models = [TrainedModel.from_run(run.best, run.config) for run in runs]
    require_same_task(models)
    groups: dict[str, list[TrainedModel]] = defaultdict(list)
    for model in models:
        groups[json.dumps(_settings(model), sort_keys=True)].append(model)
    names = _names([_settings(group[0]) for group in groups.values()])
    return [
        Candidate(name, tuple(group), _scores(group, workers, progress))
        for name, group in zip(names, groups.values(), strict=True)
    ]


def pair(first: Candidate, second: Candidate, workers: int, progress: Progress) -> Candidate | None:
    """The ensemble of two candidates, over the folds that both have; None if there is none."""
    models = tuple(
        model
        for fold in first.folds.keys() & second.folds.keys()
        for model in (*first.folds[fold], *second.folds[fold])
    )
    if not models:
        logger.warning("%s and %s have no fold in common: no ensemble", first.name, second.name)
        return None
    both = Candidate(f"{first.name} + {second.name}", models, {})
    return Candidate(both.name, models, both.predicted(None, workers, progress))


def _settings(model: TrainedModel) -> dict[str, Any]:
    settings = experiment(model.config)
    return {key: value for key, value in settings.items() if key not in _OF_A_RUN}


def _names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The network of each candidate, and what differs from the others of this network."""
    names = []
    for one in settings:
        same = [other for other in settings if _network(other) == _network(one)]
        differs = sorted(
            key
            for key in {key for other in same for key in other}
            if any(other.get(key) != one.get(key) for other in same)
        )
        details = ", ".join(f"{key.rpartition('.')[2]}={one.get(key)}" for key in differs)
        names.append(_network(one) + (f" ({details})" if details else ""))
    return names


def _network(settings: Mapping[str, Any]) -> str:
    return str(settings.get("model.target", settings.get("model.name")))


def _scores(
    models: Iterable[TrainedModel], workers: int, progress: Progress
) -> dict[str, CaseValues]:
    """The scores of all held-out cases; where several runs held a case out, their mean."""
    found: dict[str, list[CaseValues]] = defaultdict(list)
    for model in models:
        for case_id, values in _evaluated(model, workers, progress).items():
            found[case_id].append(values)
    return {
        case_id: {
            name: {
                metric: fmean(one[name][metric] for one in several) for metric in SCORING.metrics
            }
            for name in several[0]
        }
        for case_id, several in sorted(found.items())
    }


def _evaluated(model: TrainedModel, workers: int, progress: Progress) -> dict[str, CaseValues]:
    """The scores of a run's held-out cases: those that it has, or new ones."""
    run = run_of(model)
    if model.config.train.fold is None:
        raise ConfigError(
            "a candidate has held nothing out, so there is nothing to compare it by",
            where=f"{run.config}: train.fold",
            got="none",
            remedy="train it by cross-validation, train.fold=all, and name those runs",
        )
    try:
        content = parse_json(run.results.read_bytes())
        is_newer = run.results.stat().st_mtime >= model.weights.stat().st_mtime
        is_whole = content["scoring"]["empty"] == SCORING.empty and not content["failed"]
        is_current = is_newer and is_whole
    except (OSError, ValueError, LookupError, TypeError):  # or by an earlier version
        is_current = False
    if not is_current:
        evaluate_run(run.path, workers=workers, progress=progress(f"evaluating {run.path.name}"))
    cases: dict[str, CaseValues] = parse_json(run.results.read_bytes())["cases"]
    return cases
