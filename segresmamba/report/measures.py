"""The measures of one run, from what it recorded: its scores, and what it cost to reach them.

A measure is None if what it needs was not recorded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pydantic import TypeAdapter, ValidationError

from segresmamba.config import Config, changes_result
from segresmamba.config.section import Section
from segresmamba.errors import DataError
from segresmamba.storage.json_text import parse_json
from segresmamba.tracking import PRUNED, History, flatten

REPLICAS = ("seed", "train.fold")
"""Settings in which the runs of one group may differ."""
# Peaks of the rank that needed most memory: during training, or during the whole run where phases
# were not recorded.
_DEVICE_MEMORY = (
    "memory/train/device_peak_allocated_gib/max",
    "memory/device_peak_allocated_gib",
)
_HOST_MEMORY = ("memory/train/host_peak_gib/max", "memory/host_peak_gib")
_EVALUATION_DICE = "evaluation/dice/mean"
_VALIDATION_DICE, _VALIDATION_HD95 = "validation/dice/mean", "validation/hd95_mm/mean"


@dataclass(frozen=True)
class CaseScore:
    """How well one case was segmented."""

    dice: float
    """Mean over the classes that have one, see `segresmamba evaluate --empty`."""
    hd95_mm: float | None
    """Mean over the classes that have one; None if none has."""
    classes: Mapping[str, float]
    """Dice of each class."""


@dataclass(frozen=True)
class MeasuredRun:
    """A run with its measures; the unit of a measure is in its name."""

    history: History
    model: str
    replica: Mapping[str, str]
    """Its seed and fold."""
    settings: Mapping[str, str]
    """Every other setting that its result, its time or its energy depends on."""
    steps: int | None
    parameters_m: float | None
    """Parameters of the network in millions."""
    memory_gib: float | None
    memory_on: str
    """Where that memory is: device or host."""
    step_s: float | None
    """Median time of a step."""
    epoch_s: float | None
    energy_wh: float | None
    measured_wh: float | None
    """The part of the energy that meters counted; the rest is estimated."""
    co2e_g: float | None
    wh_per_1000_patches: float | None
    dice: float | None
    hd95_mm: float | None
    scored_by: str
    """evaluation, or validation if only training measured the scores; empty without scores."""
    scores_are_outdated: bool
    """Whether a later validation found better weights than those that were evaluated."""
    convention: str
    """How the evaluation scored missing structures; empty if the run was not evaluated."""
    cases: Mapping[str, CaseScore]

    @property
    def status(self) -> str:
        """How it ended. A trial that a search gave up has only recorded that it was stopped."""
        ended = self.history.status
        return "pruned" if ended != "finished" and PRUNED in self.history.tags else ended

    @classmethod
    def from_history(cls, history: History) -> MeasuredRun:
        """Compute the measures from what was recorded.

        Raises:
            DataError: If the results of the evaluation cannot be read.
        """
        curves = {
            key: [point.value for point in curve] for key, curve in history.curves.items() if curve
        }
        settings, (cases, convention) = complete_settings(history.settings), _cases(history)
        dice, hd95_mm = _scores(history, cases)
        steps = history.curves["train/loss"][-1].step if "train/loss" in curves else None
        # The first record includes compilation and cold caches.
        step_times_s = curves.get("time/step_s", [])
        step_s = median(step_times_s[1:] or step_times_s) if step_times_s else None
        epochs = history.last("epoch")
        steps_per_epoch = history.curves["epoch"][-1].step / epochs if epochs else None
        energy_wh = _scaled(history.energy.get("energy_kwh"), 1000)
        patches = steps * int(settings.get("train.batch_size", 0)) if steps else 0
        on_device = any(key in curves for key in _DEVICE_MEMORY)
        memory = _DEVICE_MEMORY if on_device else _HOST_MEMORY
        parameters = history.tags.get("parameters")
        return cls(
            history=history,
            # A network from elsewhere is named by its class, as its runs are.
            model=settings.get("model.target", settings.get("model.name", "")).rpartition(":")[2],
            replica={key: settings[key] for key in REPLICAS if key in settings},
            settings=_compared_settings(settings, history.tags),
            steps=steps,
            parameters_m=int(parameters) / 1e6 if parameters else None,
            memory_gib=next((max(curves[key]) for key in memory if key in curves), None),
            memory_on="device" if on_device else "host",
            step_s=step_s,
            epoch_s=step_s * steps_per_epoch if step_s and steps_per_epoch else None,
            energy_wh=energy_wh,
            measured_wh=_scaled(history.energy.get("measured_kwh"), 1000),
            co2e_g=_scaled(history.energy.get("emissions_kg"), 1000),
            wh_per_1000_patches=_scaled(energy_wh, 1000 / patches) if patches else None,
            dice=dice,
            hd95_mm=hd95_mm,
            scored_by="evaluation" if cases else "validation" if dice is not None else "",
            scores_are_outdated=bool(cases) and _has_better_weights(history),
            convention=convention,
            cases=cases,
        )

    @property
    def dataset(self) -> str:
        """Digest of the dataset, or where it lies if the digest was not recorded."""
        return self.settings.get("dataset", self.settings.get("data.store", ""))

    @property
    def dataset_label(self) -> str:
        """The name of the dataset's folder or file, with its digest."""
        name = Path(self.history.settings.get("data.store", "")).name
        if name and "dataset" in self.settings:
            return f"{name} ({self.dataset})"
        return name or self.dataset or "unknown"

    @property
    def meters(self) -> frozenset[str]:
        """The hardware whose energy was measured, in the words of `History.power`."""
        return frozenset(re.findall(r"(processors|GPUs) measured", self.history.power))

    def picture(self, case_id: str) -> Path | None:
        """The overlay picture of a case, if the evaluation drew one."""
        return self.history.files.get(f"overlays/{case_id}.png")


def complete_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """Add the defaults of settings that the version which recorded a run did not have yet.

    Without them, runs of two versions would never be in one group.

    Args:
        settings: As in `History.settings`. A section with a setting that this version does not know
            is returned as it is.
    """
    sections: dict[str, dict[str, Any]] = {}
    for key, text in settings.items():
        section, dot, rest = key.partition(".")
        if dot and section in Config.model_fields:
            place = sections.setdefault(section, {})
            *outer, name = rest.split(".")
            for part in outer:
                place = place.setdefault(part, {})
            try:
                place[name] = parse_json(text)
            except ValueError:
                place[name] = text
    complete = dict(settings)
    for section, values in sections.items():
        kind: Any = Config.model_fields[section].annotation
        try:
            valid = TypeAdapter[Section](kind).validate_json(json.dumps(values), strict=True)
        except ValidationError:  # the section is of a newer version, or a setting was removed
            continue
        complete |= flatten(valid.model_dump(mode="json"), f"{section}.")
    return complete


def _compared_settings(settings: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """The settings and circumstances that all runs of one group share."""
    compared = {
        key: value for key, value in settings.items() if changes_result(key) and key not in REPLICAS
    }
    digest = tags.get("dataset_digest")
    if digest:  # the same dataset may lie elsewhere on another machine
        compared.pop("data.store", None)
        compared["dataset"] = digest[:8]
    # Time, memory and energy depend on these, which are found out when a run starts.
    for tag in ("device", "world_size", "zero_stage"):
        if tag in tags:
            compared[tag] = tags[tag]
    return compared


def _cases(history: History) -> tuple[dict[str, CaseScore], str]:
    """The scores of each case in results.json, and the convention for missing structures."""
    path = history.files.get("results.json")
    if path is None:
        return {}, ""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        # Earlier versions had no other convention, and did not name it.
        convention = str(content.get("scoring", {}).get("empty", "challenge"))
        scored = {
            case_id: CaseScore(
                dice=dice,
                hd95_mm=_mean(score["hd95_mm"] for score in scores.values()),
                classes={
                    name: float(score["dice"])
                    for name, score in scores.items()
                    if score["dice"] is not None
                },
            )
            for case_id, scores in content["cases"].items()
            if (dice := _mean(score["dice"] for score in scores.values())) is not None
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "the results of an evaluation cannot be read",
            where=path,
            got=f"{type(error).__name__}: {error}",
            remedy="evaluate the run again: segresmamba evaluate RUN_FOLDER",
        ) from error
    return scored, convention if scored else ""


def _scores(history: History, cases: Mapping[str, CaseScore]) -> tuple[float | None, float | None]:
    """Dice and HD95 of the evaluation; without one, of the best validation."""
    if cases:
        scores = cases.values()
        return fmean(case.dice for case in scores), _mean(case.hd95_mm for case in scores)
    best = _best_validation(history)
    if best is None:
        return None, None
    hd95_mm = {point.step: point.value for point in history.curves.get(_VALIDATION_HD95, ())}
    step, value = best
    return value, hd95_mm.get(step)


def _best_validation(history: History) -> tuple[int, float] | None:
    """Step and mean Dice of the validation of the best weights; the first one of equals."""
    dice = history.curves.get(_VALIDATION_DICE)
    if not dice:
        return None
    best = max(dice, key=lambda point: point.value)
    return best.step, best.value


def _has_better_weights(history: History) -> bool:
    """Whether the best weights of a run are later ones than those that were evaluated last."""
    best, evaluated = _best_validation(history), history.curves.get(_EVALUATION_DICE)
    return best is not None and evaluated is not None and best[0] > evaluated[-1].step


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are defined; None if none is."""
    defined = [value for value in values if value is not None]
    return fmean(defined) if defined else None


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
