"""What one run cost and reached, taken from its history. What was not recorded is None."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from segresmamba.config import changes_result
from segresmamba.errors import DataError
from segresmamba.report.settings import completed
from segresmamba.tracking import History

RESULTS = "results.json"
REPLICAS = ("seed", "train.fold")
"""Settings in which the runs of one group may differ."""
# Of the rank that needed most: while training, or, where phases were not told apart, ever.
_DEVICE_MEMORY = (
    "memory/train/device_peak_allocated_gib/max",
    "memory/device_peak_allocated_gib",
)
_HOST_MEMORY = ("memory/train/host_peak_gib/max", "memory/host_peak_gib")
_VALIDATION_DICE, _VALIDATION_HD95 = "validation/dice/mean", "validation/hd95_mm/mean"


@dataclass(frozen=True)
class CaseScore:
    """How well one case was segmented."""

    dice: float
    """Mean over the classes."""
    hd95_mm: float
    """Mean over the classes."""
    classes: Mapping[str, float]
    """Dice of each class."""


@dataclass(frozen=True)
class MeasuredRun:
    """One row of the table of runs."""

    history: History
    model: str
    replica: Mapping[str, str]
    """Its seed and fold."""
    settings: Mapping[str, str]
    """All else that its result, its time or its energy depends on."""
    steps: int | None
    parameters_m: float | None
    memory_gib: float | None
    memory_on: str
    """device or host."""
    step_s: float | None
    epoch_s: float | None
    energy_wh: float | None
    co2e_g: float | None
    wh_per_1000_patches: float | None
    dice: float | None
    hd95_mm: float | None
    scored_by: str
    """evaluation, or validation during training."""
    cases: Mapping[str, CaseScore]

    @classmethod
    def from_history(cls, history: History) -> MeasuredRun:
        """Derive everything from what was recorded.

        Raises:
            DataError: If the results of the evaluation cannot be read.
        """
        settings, cases = completed(history.settings), _cases(history)
        steps = _steps(history)
        step_s = _step_s(history)
        per_epoch = _steps_per_epoch(history)
        energy_kwh, emissions_kg = (
            history.energy.get(name) for name in ("energy_kwh", "emissions_kg")
        )
        energy_wh = _scaled(energy_kwh, 1000)
        patches = steps * int(settings.get("train.batch_size", 0)) if steps else 0
        dice, hd95_mm = _scores(history, cases)
        on_device = any(key in history.curves for key in _DEVICE_MEMORY)
        parameters = history.tags.get("parameters")
        return cls(
            history=history,
            model=settings.get("model.name", ""),
            replica={key: settings[key] for key in REPLICAS if key in settings},
            settings=_compared_settings(settings, history.tags),
            steps=steps,
            parameters_m=int(parameters) / 1e6 if parameters else None,
            memory_gib=_most(history, _DEVICE_MEMORY if on_device else _HOST_MEMORY),
            memory_on="device" if on_device else "host",
            step_s=step_s,
            epoch_s=step_s * per_epoch if step_s and per_epoch else None,
            energy_wh=energy_wh,
            co2e_g=_scaled(emissions_kg, 1000),
            wh_per_1000_patches=_scaled(energy_wh, 1000 / patches) if patches else None,
            dice=dice,
            hd95_mm=hd95_mm,
            scored_by="evaluation" if cases else "validation" if dice is not None else "",
            cases=cases,
        )

    @property
    def dataset(self) -> str:
        """What tells its cases from those of another dataset."""
        return self.settings.get("dataset", self.settings.get("data.store", ""))

    def picture(self, case_id: str) -> Path | None:
        """The overlay that the evaluation drew of a case."""
        return self.history.files.get(f"overlays/{case_id}.png")


def _compared_settings(settings: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """The settings and circumstances that runs of one group share."""
    compared = {
        key: value for key, value in settings.items() if changes_result(key) and key not in REPLICAS
    }
    digest = tags.get("dataset_digest")
    if digest:  # the same dataset may lie elsewhere on another machine
        compared.pop("data.store", None)
        compared["dataset"] = digest[:8]
    for tag in ("device", "world_size", "zero_stage"):
        if tag in tags:
            compared[tag] = tags[tag]
    return compared


def _cases(history: History) -> dict[str, CaseScore]:
    """The cases of results.json, which the evaluation wrote."""
    path = history.files.get(RESULTS)
    if path is None:
        return {}
    try:
        cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
        return {case_id: _case_score(scores) for case_id, scores in cases.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "the results of an evaluation cannot be read",
            where=path,
            got=f"{type(error).__name__}: {error}",
            remedy="evaluate the run again: segresmamba evaluate RUN_FOLDER",
        ) from error


def _case_score(scores: Mapping[str, Mapping[str, float]]) -> CaseScore:
    return CaseScore(
        dice=fmean(score["dice"] for score in scores.values()),
        hd95_mm=fmean(score["hd95_mm"] for score in scores.values()),
        classes={name: float(score["dice"]) for name, score in scores.items()},
    )


def _scores(history: History, cases: Mapping[str, CaseScore]) -> tuple[float | None, float | None]:
    """Dice and HD95 of the evaluation; without one, of the best validation."""
    if cases:
        scores = cases.values()
        return fmean(case.dice for case in scores), fmean(case.hd95_mm for case in scores)
    dice = history.curves.get(_VALIDATION_DICE)
    if not dice:
        return None, None
    best = max(dice, key=lambda point: point.value)
    hd95_mm = {point.step: point.value for point in history.curves.get(_VALIDATION_HD95, ())}
    return best.value, hd95_mm.get(best.step)


def _steps(history: History) -> int | None:
    """Steps trained, as far as they were recorded."""
    losses = history.curves.get("train/loss")
    return losses[-1].step if losses else None


def _step_s(history: History) -> float | None:
    """The usual step: the first record holds compilation and cold caches."""
    values = _values(history, "time/step_s")
    return median(values[1:] or values) if values else None


def _steps_per_epoch(history: History) -> float | None:
    epochs = history.curves.get("epoch")
    return epochs[-1].step / epochs[-1].value if epochs and epochs[-1].value else None


def _most(history: History, keys: Sequence[str]) -> float | None:
    """The highest value of the first metric that was recorded."""
    return next((max(values) for key in keys if (values := _values(history, key))), None)


def _values(history: History, key: str) -> Sequence[float]:
    return [point.value for point in history.curves.get(key, ())]


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
