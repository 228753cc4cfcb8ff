"""Runs that differ in seed and fold alone are one group: a row, a colour, a mean and a spread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from segresmamba.report.measures import CaseScore, MeasuredRun

_LONGEST_VALUE = 24


@dataclass(frozen=True)
class Spread:
    """A measure over the runs of a group."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of at least one value."""
        return fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None of a single value."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Group:
    """Runs of one network under the same settings."""

    label: str
    """The network, and the settings that tell the group from others of that network."""
    runs: tuple[MeasuredRun, ...]

    def spread(self, measure: str) -> Spread | None:
        """A measure of `MeasuredRun` by its name; None if no run has it."""
        values = (getattr(run, measure) for run in self.runs)
        present = tuple(value for value in values if value is not None)
        return Spread(present) if present else None

    def mean(self, measure: str) -> float | None:
        """Mean of a measure; None if no run has it."""
        spread = self.spread(measure)
        return spread.mean if spread else None

    def case_dice(self) -> dict[tuple[str, str], float]:
        """Mean Dice of each case over the runs that were evaluated on it, by dataset and case."""
        scores: dict[tuple[str, str], list[float]] = defaultdict(list)
        for run in self.runs:
            for case_id, score in run.cases.items():
                scores[run.dataset, case_id].append(score.dice)
        return {case: fmean(values) for case, values in scores.items()}

    def class_dice(self) -> dict[str, Spread]:
        """Dice of each class: of a run the mean over its cases."""
        values: dict[str, list[float]] = defaultdict(list)
        for run in self.runs:
            for name in next(iter(run.cases.values()), CaseScore(0, 0, {})).classes:
                values[name].append(fmean(case.classes[name] for case in run.cases.values()))
        return {name: Spread(tuple(of_runs)) for name, of_runs in values.items()}


def group_runs(runs: Iterable[MeasuredRun]) -> list[Group]:
    """Group runs that differ in seed and fold alone, in the order of their networks' names."""
    found: dict[frozenset[tuple[str, str]], list[MeasuredRun]] = defaultdict(list)
    for run in runs:
        found[frozenset(run.settings.items())].append(run)
    groups = [tuple(sorted(group, key=_order)) for group in found.values()]
    labels = _labels([group[0] for group in groups])
    return sorted(
        (Group(label, group) for label, group in zip(labels, groups, strict=True)),
        key=lambda group: group.label,
    )


def differences(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Settings beside the network's own that are not the same in all groups, with their values."""
    everywhere = _differing([group.runs[0] for group in groups])
    return {
        key: [group.runs[0].settings.get(key, "") for group in groups]
        for key in everywhere
        if not key.startswith("model.")
    }


def pareto_front(groups: Sequence[Group], cost: str, gain: str) -> list[Group]:
    """Groups that no other beats: none has less `cost` and no less `gain`, or the reverse.

    Args:
        groups: Those that lack either measure are left out.
        cost: A measure of which less is better.
        gain: A measure of which more is better.

    Returns:
        The front from the smallest cost to the largest.
    """
    front: list[Group] = []
    placed = [
        (costs, -gains, group)
        for group in groups
        if (costs := group.mean(cost)) is not None and (gains := group.mean(gain)) is not None
    ]
    least = float("inf")
    for _, loss, group in sorted(placed, key=lambda entry: entry[:2]):
        if loss < least:
            least = loss
            front.append(group)
    return front


def _labels(examples: Sequence[MeasuredRun]) -> list[str]:
    """Names that tell groups apart, each given by one of its runs."""
    by_model: dict[str, list[MeasuredRun]] = defaultdict(list)
    for run in examples:
        by_model[run.model].append(run)
    labels = []
    for run in examples:
        keys = _differing(by_model[run.model])
        details = ", ".join(f"{_short(key, keys)}={_value(run.settings, key)}" for key in keys)
        model = run.model or "unknown network"
        labels.append(f"{model} ({details})" if details else model)
    return labels


def _differing(runs: Sequence[MeasuredRun]) -> list[str]:
    keys = {key for run in runs for key in run.settings}
    return sorted(key for key in keys if len({run.settings.get(key) for run in runs}) > 1)


def _short(key: str, keys: Sequence[str]) -> str:
    """The last part of a dotted key, unless another one ends so too."""
    last = key.rpartition(".")[2]
    return key if sum(other.rpartition(".")[2] == last for other in keys) > 1 else last


def _value(settings: Mapping[str, str], key: str) -> str:
    text = settings.get(key, "unset")
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _order(run: MeasuredRun) -> tuple[int, int, str]:
    fold, seed = (int(run.replica.get(key, 0)) for key in ("train.fold", "seed"))
    return fold, seed, run.history.name
