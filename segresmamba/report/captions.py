"""The sentences of a report: what is compared, and how each number was measured."""

from __future__ import annotations

from collections.abc import Sequence

from segresmamba.report.groups import Group, by_dataset, have_same_cases, have_same_meters
from segresmamba.report.measures import MeasuredRun
from segresmamba.report.significance import ALL_PAIRS_UP_TO, Comparison

MEMORY = {
    "device": "allocated on the GPU during training, by the rank that needed most",
    "host": "resident in the training process of the rank that needed most, without its reader "
    "processes",
}


def title(datasets: Sequence[Sequence[Group]]) -> str:
    """The heading, of the groups of each dataset."""
    if len(datasets) > 1:
        return f"Runs on {len(datasets)} datasets"
    (groups,) = datasets
    if len(groups) == 1:
        return groups[0].label
    networks = len({group.runs[0].model for group in groups})
    variants = f"{len(groups)} variants of " if networks < len(groups) else ""
    return f"{variants}{_count(networks, 'network')} compared"


def lead(runs: Sequence[MeasuredRun]) -> str:
    """The line below the heading."""
    # A copy of a dataset under another name is the same dataset.
    datasets = [copies[0].dataset_label for copies in by_dataset(runs) if copies[0].dataset]
    devices = sorted({run.history.tags.get("device", "") for run in runs} - {""})
    text = _count(len(runs), "run")
    if devices:
        text += f" on {' and '.join(devices)}"
    if datasets:
        text += f", dataset {' and '.join(datasets)}"
    if pruned := sum(run.status == "pruned" for run in runs):
        text += f"; {pruned} pruned by the search"
    if unfinished := sum(run.status not in {"finished", "pruned"} for run in runs):
        text += f"; {unfinished} not finished"
    if len(datasets) > 1:
        text += ". Each dataset has its own section, as nothing can be compared across datasets"
    return text + "."


def notes(
    groups: Sequence[Group], comparisons: Sequence[Comparison], baseline: MeasuredRun | None
) -> dict[str, str]:
    """The note under each part of the report, by the name of the part."""
    runs = [run for group in groups for run in group.runs]
    marks = []
    if any(run.status == "running" for run in runs):
        marks.append("* No end is recorded: the run is still going, or it was killed.")
    marks += _marks_of_scores(runs)
    tested = (
        "Two-sided Wilcoxon signed-rank test on the Dice of the cases that both were evaluated on "
        "(a case's mean over classes and runs), corrected for "
        f"{_count(len(comparisons), 'comparison')} by Holm's method."
    )
    if any(pair.smallest_p > 0.05 for pair in comparisons):
        tested += " With fewer than six cases no difference, however large, can reach p < 0.05."
    compared = {id(group) for pair in comparisons for group in (pair.first, pair.second)}
    if len(compared) > ALL_PAIRS_UP_TO and len({id(pair.second) for pair in comparisons}) == 1:
        tested += f" All are compared with {comparisons[0].second.label} only."
    return {
        "networks": _networks_note(groups, baseline),
        "tradeoff": "Mark: mean of a network's runs; whiskers: standard deviation. No network on "
        "the Pareto front is beaten by another in both Dice and memory.",
        "curves": "Line: mean of a network's runs; band: lowest to highest.",
        "significance": tested,
        "worst": "Up to three cases of each network, from its worst run on that case. Area: "
        "prediction; line: reference. A picture is there if the evaluation drew one.",
        "runs": " ".join(marks),
    }


def measured(groups: Sequence[Group]) -> dict[str, str]:
    """How each number was measured."""
    runs = [run for group in groups for run in group.runs]
    kinds = sorted({run.memory_on for run in runs if run.memory_gib is not None})
    power = sorted({line for run in runs for line in run.history.power.splitlines()})
    texts = {
        "Memory": "; ".join(f"peak {MEMORY[kind]}" for kind in kinds),
        "Step": "median over all records of a run except the first; waiting for data is included",
        "Epoch": "time of a step by the steps of an epoch, without validation and saving",
        "Energy, CO₂e": "sum over all nodes and restarts of the run"
        + "".join(f"; {line}" for line in power),
        "Of it measured": "what the meters of processors (RAPL) and GPUs (NVML, AMD SMI) counted; "
        "the rest is estimated from load, nominal power and the size of the memory",
        "Per 1000 patches": "energy of the run, divided by the number of crops that it trained on",
        "Dice, HD95": "mean over classes and held-out cases: whole volumes in the original "
        "geometry, best weights. A run that was not evaluated shows its best validation",
    }
    return {name: f"{text}." for name, text in texts.items() if text}


def _networks_note(groups: Sequence[Group], baseline: MeasuredRun | None) -> str:
    sentences = []
    if any(len(group.runs) > 1 for group in groups):
        sentences.append("Means ± standard deviations over seeds and folds.")
    if len(groups) > 1:
        sentences.append("Bold: best of the column. Pareto ●: on the front of Dice and memory.")
    spreads = [
        (group, group.spread(name)) for group in groups for name in ("dice", "energy_wh", "step_s")
    ]
    if any(spread and len(spread.values) < len(group.runs) for group, spread in spreads):
        sentences.append("A mean leaves out the runs that lack this value.")
    runs = [run for group in groups for run in group.runs]
    # An energy that nobody knows is no estimate.
    if len(groups) > 1 and any((run.measured_wh or 0.0) < (run.energy_wh or 0.0) for run in runs):
        sentences.append(
            "Energy that was not measured is estimated from load. The estimate does not tell which "
            "network needs less, so the least energy and CO₂e are not marked."
        )
    if not have_same_meters(run for group in groups for run in group.runs):
        sentences.append("The runs had different meters: their measured energies are not compared.")
    conventions = sorted({run.convention for run in runs if run.convention})
    if len(conventions) > 1:
        sentences.append(
            "The runs were evaluated by different conventions for missing structures "
            f"({', '.join(conventions)}): their scores are not compared. Evaluate all of them with "
            "the same --empty."
        )
    if not have_same_cases(groups):
        sentences.append(
            "The networks were evaluated on different cases, so Dice and HD95 of one row say "
            "nothing about another."
        )
    sentences += _marks_of_scores(runs)
    if baseline:
        sentences.append(
            f"Per Dice point: measured energy beyond that of {baseline.history.name} for each 0.01 "
            "of Dice gained over it; empty where nothing was gained or measured."
        )
    return " ".join(sentences)


def _marks_of_scores(runs: Sequence[MeasuredRun]) -> list[str]:
    """What the marks beside scores mean, of those that there are."""
    marks = []
    if any(run.scored_by == "validation" for run in runs):
        marks.append("† Best validation; segresmamba evaluate was not run.")
    if any(run.scores_are_outdated for run in runs):
        marks.append(
            "‡ Evaluated before training found better weights: run segresmamba evaluate again."
        )
    return marks


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
