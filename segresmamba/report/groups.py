"""Groups of runs that differ only in seed and fold, with means and spreads of their measures.

A report shows a group as one row and one colour, because such runs repeat one experiment.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from segresmamba.report.measures import CaseScore, MeasuredRun

_LONGEST_VALUE = 24  # characters
_WORST_OF_GROUP, _WORST_OF_ALL = 3, 12


@dataclass(frozen=True)
class Spread:
    """The values of a measure over the runs of a group; there is at least one."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None if there is one value."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Group:
    """Runs of one network with the same settings, except seed and fold."""

    label: str
    """The name that the user gave its only run, with the network; without such a name the network
    and the settings that differ from those of its other groups."""
    runs: tuple[MeasuredRun, ...]

    def spread(self, measure: str) -> Spread | None:
        """A measure, by the name of its field in `MeasuredRun`; None if no run has it."""
        values = (getattr(run, measure) for run in self.runs)
        present = tuple(value for value in values if value is not None)
        return Spread(present) if present else None

    def mean(self, measure: str) -> float | None:
        """Mean of a measure; None if no run has it."""
        spread = self.spread(measure)
        return spread.mean if spread else None

    def case_dice(self) -> dict[tuple[str, str], float]:
        """Mean Dice of each case over the runs that were evaluated on it.

        Returns:
            Dice by dataset and case, since two datasets may use the same names.
        """
        scores: dict[tuple[str, str], list[float]] = defaultdict(list)
        for run in self.runs:
            for case_id, score in run.cases.items():
                scores[run.dataset, case_id].append(score.dice)
        return {case: fmean(values) for case, values in scores.items()}

    def class_dice(self) -> dict[str, Spread]:
        """Dice of each class; the value of a run is the mean over its cases."""
        values: dict[str, list[float]] = defaultdict(list)
        for run in self.runs:
            of_run: dict[str, list[float]] = defaultdict(list)
            for case in run.cases.values():
                for name, dice in case.classes.items():
                    of_run[name].append(dice)
            for name, of_cases in of_run.items():
                values[name].append(fmean(of_cases))
        return {name: Spread(tuple(means)) for name, means in values.items()}


@dataclass(frozen=True)
class WorstCase:
    """A case with the run that was worst on it."""

    group: Group
    run: MeasuredRun
    case_id: str
    score: CaseScore


def by_dataset(runs: Iterable[MeasuredRun]) -> list[list[MeasuredRun]]:
    """The runs of each dataset, which nothing can be compared across."""
    found: dict[str, list[MeasuredRun]] = defaultdict(list)
    for run in runs:
        found[run.dataset].append(run)
    return sorted(found.values(), key=lambda runs: runs[0].dataset_label)


def have_same_meters(runs: Iterable[MeasuredRun]) -> bool:
    """Whether the same hardware was measured in all runs: else their measured energies differ."""
    return len({run.meters for run in runs if run.measured_wh is not None}) <= 1


def have_same_convention(runs: Iterable[MeasuredRun]) -> bool:
    """Whether all evaluations scored missing structures alike: else their scores differ."""
    return len({run.convention for run in runs if run.convention}) <= 1


def have_same_cases(groups: Iterable[Group]) -> bool:
    """Whether all groups that were evaluated were so on the same cases."""
    return len({cases for group in groups if (cases := frozenset(group.case_dice()))}) <= 1


def group_runs(runs: Iterable[MeasuredRun]) -> list[Group]:
    """Group runs that differ only in seed and fold; the groups are sorted by their labels."""
    found: dict[frozenset[tuple[str, str]], list[MeasuredRun]] = defaultdict(list)
    for run in runs:
        found[frozenset(run.settings.items())].append(run)

    def order(run: MeasuredRun) -> tuple[int, int, str]:
        fold, seed = (run.replica.get(key, "0") for key in ("train.fold", "seed"))
        held_out = -1 if fold == "null" else int(fold)  # all cases have trained
        return held_out, int(seed), run.history.name

    groups = [tuple(sorted(group, key=order)) for group in found.values()]
    names = Counter(name for group in groups if (name := _given_name(group)))
    labels = [
        f"{name} ({group[0].model or 'unknown network'})"
        if (name := _given_name(group)) and names[name] == 1
        else label
        for group, label in zip(groups, _labels([group[0] for group in groups]), strict=True)
    ]
    return sorted(
        (Group(label, group) for label, group in zip(labels, groups, strict=True)),
        key=lambda group: group.label,
    )


def differences(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Settings that differ between groups, except those of the network, with their values."""
    everywhere = _differing([group.runs[0] for group in groups])
    return {
        key: [group.runs[0].settings.get(key, "") for group in groups]
        for key in everywhere
        if not key.startswith("model.")
    }


def pareto_front(groups: Sequence[Group], cost: str, gain: str) -> list[Group]:
    """Groups that no other group beats in one measure without losing in the other.

    Args:
        groups: The groups. Those that lack either measure are left out.
        cost: Name of a measure that is better if it is lower.
        gain: Name of a measure that is better if it is higher.

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
    # From the smallest cost on, a group is on the front if it gains more than all before it.
    for _, loss, group in sorted(placed, key=lambda entry: entry[:2]):
        if loss < least:
            least = loss
            front.append(group)
    return front


def worst_cases(groups: Sequence[Group]) -> list[WorstCase]:
    """The cases of the lowest Dice, at most three of each group and twelve in all, worst first.

    Where several runs of a group were evaluated on a case, the worst of them is taken.
    """

    def dice(case: WorstCase) -> float:
        return case.score.dice

    chosen: list[WorstCase] = []
    for group in groups:
        worst: dict[str, WorstCase] = {}
        for run in group.runs:
            for case_id, score in run.cases.items():
                if case_id not in worst or score.dice < worst[case_id].score.dice:
                    worst[case_id] = WorstCase(group, run, case_id, score)
        chosen += sorted(worst.values(), key=dice)[:_WORST_OF_GROUP]
    return sorted(chosen, key=dice)[:_WORST_OF_ALL]


def _given_name(group: Sequence[MeasuredRun]) -> str:
    """The name that the user, or a sweep, gave the only run of a group; empty if there is none."""
    is_named = group[0].history.settings.get("run.name", "null") != "null"
    return group[0].history.name if len(group) == 1 and is_named else ""


def _labels(examples: Sequence[MeasuredRun]) -> list[str]:
    """A name for each group, given by one of its runs: the network and what differs within it."""
    by_model: dict[str, list[MeasuredRun]] = defaultdict(list)
    for run in examples:
        by_model[run.model].append(run)
    labels = []
    for run in examples:
        keys = _differing(by_model[run.model])
        last_parts = [key.rpartition(".")[2] for key in keys]
        details = []
        for key, last in zip(keys, last_parts, strict=True):
            # The last part of a dotted key is enough, unless another key has the same one.
            name = last if last_parts.count(last) == 1 else key
            value = run.settings.get(key, "unset")
            if len(value) > _LONGEST_VALUE:
                value = value[: _LONGEST_VALUE - 1] + "…"
            details.append(f"{name}={value}")
        model = run.model or "unknown network"
        labels.append(f"{model} ({', '.join(details)})" if details else model)
    return labels


def _differing(runs: Sequence[MeasuredRun]) -> list[str]:
    """Keys of the settings that are not the same in all runs."""
    keys = {key for run in runs for key in run.settings}
    return sorted(key for key in keys if len({run.settings.get(key) for run in runs}) > 1)
