"""The tables of a report as cells, from which the page and the Markdown file are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from segresmamba.report.groups import Group, Spread, have_same_convention, have_same_meters
from segresmamba.report.measures import MeasuredRun
from segresmamba.report.significance import Comparison

_RUNNING = "running*"
_DICE_POINT = 0.01  # Dice is from 0 to 1, a point is a hundredth
_SCORES = ("dice", "hd95_mm")


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str = ""
    spread: str = ""
    """Standard deviation, shown smaller after the text."""
    sort: float | None = None
    """The value that a numeric column is sorted by; None comes last."""
    best: bool = False
    colour: str = ""
    """Colour of the group in the pictures, shown beside its name."""


@dataclass(frozen=True)
class Column:
    """The head of a column."""

    title: str
    unit: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table of a report."""

    name: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class _Measure:
    """A measure of `MeasuredRun` as a column."""

    name: str
    title: str
    unit: str
    decimals: int | None = None
    """Digits after the point; None shows three significant digits."""
    high_is_good: bool = False
    large_unit: str = ""
    """1000 units; the whole column has this unit if a group reaches it."""
    scale: float = 1.0
    """Factor that converts a value to `unit`."""
    marks_best: bool = True
    """Whether the best of the column is marked. An estimate does not tell which network is."""

    def in_column(self, groups: Sequence[Group]) -> _Measure:
        """The measure in the unit that fits the values of these groups."""
        largest = max((group.mean(self.name) or 0.0 for group in groups), default=0.0)
        if self.large_unit and largest >= 1000:
            return replace(self, unit=self.large_unit, scale=0.001)
        return self


_MEASURES = (
    _Measure("parameters_m", "Parameters", "M"),
    _Measure("memory_gib", "Memory", "GiB"),
    _Measure("step_s", "Step", "s"),
    _Measure("epoch_s", "Epoch", "s"),
    _Measure("energy_wh", "Energy", "Wh", large_unit="kWh", marks_best=False),
    _Measure("measured_wh", "Of it measured", "Wh", large_unit="kWh"),
    _Measure("co2e_g", "CO₂e", "g", large_unit="kg", marks_best=False),
    _Measure("wh_per_1000_patches", "Per 1000 patches", "Wh", marks_best=False),
    _Measure("dice", "Dice", "", decimals=3, high_is_good=True),
    _Measure("hd95_mm", "HD95", "mm", decimals=2),
)


def number(value: float | None, decimals: int | None = None) -> str:
    """A number with fixed digits after the point, or with three significant ones; no exponent."""
    if value is None:
        return ""
    return f"{value:,.{_decimals_of(value) if decimals is None else decimals}f}"


def networks_table(
    groups: Sequence[Group],
    colours: Sequence[str],
    front: Sequence[Group],
    baseline: MeasuredRun | None,
) -> Table:
    """Means and spreads of each group; a row for each."""
    runs = [run for group in groups for run in group.runs]
    unmarked = set() if have_same_meters(runs) else {"measured_wh"}
    unmarked |= set() if have_same_convention(runs) else {*_SCORES}
    measures = [
        replace(measure, marks_best=measure.marks_best and measure.name not in unmarked)
        for measure in (measure.in_column(groups) for measure in _MEASURES)
    ]
    columns = [Column("Network", numeric=False), Column("Runs")]
    columns += [Column(measure.title, measure.unit) for measure in measures]
    if len(groups) > 1:
        columns.append(Column("Pareto", numeric=False))
    if baseline:
        columns.append(Column("Per Dice point", "Wh"))
    rows = []
    for group, colour in zip(groups, colours, strict=True):
        row = [
            Cell(group.label, colour=colour),
            Cell(str(len(group.runs)), sort=len(group.runs)),
            *(_mean_cell(group, groups, measure) for measure in measures),
        ]
        if len(groups) > 1:
            row.append(Cell("●" if group in front else ""))
        if baseline:
            row.append(_number_cell(wh_per_dice_point(group, baseline)))
        rows.append(row)
    return Table("networks", columns, rows)


def wh_per_dice_point(group: Group, baseline: MeasuredRun) -> float | None:
    """Energy that a group uses more than the baseline for each 0.01 of Dice that it gains over it.

    Only measured energy counts.

    Returns:
        Energy in Wh; below zero if the group uses less. None if it gains nothing, or if one of the
        values was not measured or not in the same way.
    """
    energy, dice = group.mean("measured_wh"), group.mean("dice")
    if not energy or dice is None or not baseline.measured_wh or baseline.dice is None:
        return None
    runs = [*group.runs, baseline]
    if not (have_same_meters(runs) and have_same_convention(runs)):
        return None
    gained = (dice - baseline.dice) / _DICE_POINT
    return (energy - baseline.measured_wh) / gained if gained > 0 else None


def classes_table(groups: Sequence[Group], colours: Sequence[str]) -> Table:
    """Dice of each class; a row for each group that was evaluated."""
    found = [group.class_dice() for group in groups]
    names = list(dict.fromkeys(name for classes in found for name in classes))
    rows = [
        [
            Cell(group.label, colour=colour),
            *(_spread_cell(classes.get(name), decimals=3) for name in names),
        ]
        for group, colour, classes in zip(groups, colours, found, strict=True)
        if classes
    ]
    columns = [Column("Network", numeric=False), *(Column(name) for name in names)]
    return Table("classes", columns, rows)


def significance_table(comparisons: Sequence[Comparison]) -> Table:
    """The comparisons; a row for each pair of groups."""
    columns = [
        Column("First", numeric=False),
        Column("Second", numeric=False),
        Column("Cases n"),
        Column("Median difference of Dice"),
        Column("p"),
        Column("p, Holm"),
        Column("Smallest p possible"),
    ]
    rows = [
        [
            Cell(pair.first.label),
            Cell(pair.second.label),
            Cell(str(pair.cases), sort=pair.cases),
            Cell(f"{pair.difference:+.4f}".replace("-", "−"), sort=pair.difference),
            _number_cell(pair.p),
            _number_cell(pair.p_holm),
            _number_cell(pair.smallest_p),
        ]
        for pair in comparisons
    ]
    return Table("significance", columns, rows)


def runs_table(groups: Sequence[Group], colours: Sequence[str]) -> Table:
    """Every run, with its seed, its fold and how it ended."""
    # The number of parameters, which comes first, is the same for all runs of a group.
    measures = [measure.in_column(groups) for measure in _MEASURES[1:]]
    columns = [
        Column("Run", numeric=False),
        Column("Network", numeric=False),
        Column("Seed"),
        Column("Fold"),
        Column("Status", numeric=False),
        Column("Steps"),
        *(Column(measure.title, measure.unit) for measure in measures),
    ]
    rows = [
        [
            Cell(run.history.name),
            Cell(group.label, colour=colour),
            _whole(run.replica.get("seed")),
            _whole(run.replica.get("train.fold")),
            Cell(_RUNNING if run.status == "running" else run.status),
            _whole(run.steps),
            *(_run_cell(run, measure) for measure in measures),
        ]
        for group, colour in zip(groups, colours, strict=True)
        for run in group.runs
    ]
    return Table("runs", columns, rows)


def _mean_cell(group: Group, groups: Sequence[Group], measure: _Measure) -> Cell:
    cell = _spread_cell(group.spread(measure.name), measure.decimals, measure.scale)
    means = [mean for other in groups if (mean := other.mean(measure.name)) is not None]
    choose: Callable[[list[float]], float] = max if measure.high_is_good else min
    # If all groups have the same value, none of them is the best.
    is_best = len(set(means)) > 1 and group.mean(measure.name) == choose(means)
    return replace(
        cell, text=_marked(cell, group.runs, measure), best=measure.marks_best and is_best
    )


def _marked(cell: Cell, runs: Sequence[MeasuredRun], measure: _Measure) -> str:
    """The text of a cell with a mark if a score is not what an evaluation of the run would say."""
    if not cell.text or measure.name not in _SCORES:
        return cell.text
    of_validation = any(run.scored_by == "validation" for run in runs)
    outdated = any(run.scores_are_outdated for run in runs)
    return cell.text + "†" * of_validation + "‡" * outdated


def _spread_cell(spread: Spread | None, decimals: int | None = None, scale: float = 1.0) -> Cell:
    if spread is None:
        return Cell()
    mean, deviation, shown = spread.mean * scale, spread.deviation, ""
    if deviation:  # for parameters it is always zero
        places = _decimals_of(mean) if decimals is None else decimals
        shown = number(deviation * scale, places)
    return Cell(number(mean, decimals), shown, spread.mean)


def _decimals_of(value: float) -> int:
    """Digits after the point for three significant digits."""
    return max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0


def _number_cell(value: float | None, decimals: int | None = None, scale: float = 1.0) -> Cell:
    return Cell() if value is None else Cell(number(value * scale, decimals), sort=value)


def _run_cell(run: MeasuredRun, measure: _Measure) -> Cell:
    cell = _number_cell(getattr(run, measure.name), measure.decimals, measure.scale)
    return replace(cell, text=_marked(cell, [run], measure))


def _whole(value: str | int | None) -> Cell:
    return Cell() if value in (None, "null") else Cell(f"{int(value):,}", sort=int(value))
