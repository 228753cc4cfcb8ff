"""Results as JSON, CSV and Markdown, and as a table for a terminal."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from segresmamba.evaluation.measures import METRICS, Scoring
from segresmamba.evaluation.results import MEAN, Results
from segresmamba.evaluation.statistics import Statistic
from segresmamba.storage.atomic import write_text
from segresmamba.storage.markdown import text

_COLUMNS = 4  # metrics that fit on a terminal
_WORST = 5  # cases


def write_result_files(path: Path, results: Results, about: Mapping[str, Any]) -> tuple[Path, ...]:
    """Write results.json or so, and beside it the same name with .csv and .md; each atomically.

    Args:
        path: The JSON file.
        results: The results.
        about: What was evaluated, for the beginning of the JSON file and the Markdown file.

    Returns:
        The three files.

    Raises:
        OSError: If one cannot be written.
    """
    content = {**about, **results.content()}
    table = io.StringIO()  # a line for each case and class; what is not defined is empty
    lines = csv.writer(table, lineterminator="\n")
    lines.writerow(["case", "class", *results.scoring.metrics])
    for case_id, case in results.cases.items():
        for name, values in case.items():
            cells = ("" if math.isnan(value) else value for value in values.values())
            lines.writerow([case_id, name, *cells])
    texts = {
        path: json.dumps(content, indent=2, allow_nan=False) + "\n",
        path.with_suffix(".csv"): table.getvalue(),
        path.with_suffix(".md"): _markdown(results, about),
    }
    for file, written in texts.items():
        write_text(file, written)
    return tuple(texts)


def _markdown(results: Results, about: Mapping[str, Any]) -> str:
    metrics = results.scoring.metrics
    head = ["class", *(METRICS[metric].title for metric in metrics)]
    lines = [
        f"# Evaluation of {len(results.cases)} cases",
        "",
        *(f"- {key}: {text(str(value))}" for key, value in about.items()),
        "",
        "Mean over the cases, in brackets its 95 % bootstrap interval, then the median.",
        "",
        _row(head),
        _row(["---"] * len(head)),
        *(
            _row([text(name), *(_cell(metric, row[metric]) for metric in metrics)])
            for name, row in results.statistics.items()
        ),
        "",
        "Cases of the lowest Dice, the mean over the classes:",
        "",
        *(f"- {text(one)}: {results.dice(one):.3f}" for one in results.ranked[:_WORST]),
        "",
        *(f"- **not scored**: {text(one)}: {text(why)}" for one, why in results.failed.items()),
        *([""] if results.failed else []),
        *_settings(results.scoring),
        "",
        *(f"- {METRICS[metric].title}: {METRICS[metric].definition}" for metric in metrics),
    ]
    return "\n".join(lines) + "\n"


def _settings(scoring: Scoring) -> list[str]:
    """Sentences on what the numbers depend on."""
    lines = [f"A missing structure is scored by the convention `{scoring.empty}`."]
    if "nsd" in scoring.metrics:
        own = ", ".join(f"{text(name)} {mm:g} mm" for name, mm in scoring.tolerance_mm.items())
        others = f"{'others ' if own else ''}{scoring.other_tolerance_mm:g} mm"
        lines.append(f"Tolerance of NSD: {own + ', ' if own else ''}{others}.")
    if any(name.startswith("lesion") for name in scoring.metrics):
        lines.append(
            f"Lesions are dilated by {scoring.lesion_dilation_voxels} voxels; those up to "
            f"{scoring.lesion_minimum_mm3:g} mm^3 are left out."
        )
    return lines


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(metric: str, one: Statistic) -> str:
    if math.isnan(one.mean):
        return "not defined"
    shown = _shown(metric, one) + f"; {_digits(metric, one.median)}"
    return shown + (f" ({one.undefined} left out)" if one.undefined else "")


def _shown(metric: str, one: Statistic) -> str:
    """The mean with its interval."""
    if math.isnan(one.mean):
        return "-"
    interval = f" [{_digits(metric, one.low)}, {_digits(metric, one.high)}]"
    return _digits(metric, one.mean) + ("" if math.isnan(one.low) else interval)


def _digits(metric: str, value: float) -> str:
    return f"{value:.{METRICS[metric].decimals}f}"


def results_table(results: Results) -> Table:
    """The means for a terminal, with the worst case of each class, to be looked at first."""
    table = Table(title=f"{len(results.cases)} cases, whole volumes, original geometry")
    metrics = [one for one in results.scoring.metrics if METRICS[one].kind != "volume"][:_COLUMNS]
    # Names are never cut off: those of two classes or cases often differ at their ends alone.
    table.add_column("class", overflow="fold")
    for metric in metrics:
        table.add_column(METRICS[metric].title, justify="right")
    table.add_column("worst case", overflow="fold")
    for name, row in results.statistics.items():
        if name == MEAN:
            table.add_section()
        dice = {
            case_id: results.dice(case_id) if name == MEAN else case[name]["dice"]
            for case_id, case in results.cases.items()
        }
        defined = {case_id: value for case_id, value in dice.items() if not math.isnan(value)}
        worst = min(defined, key=defined.__getitem__, default=None)
        table.add_row(
            Text(name),
            *(_shown(metric, row[metric]) for metric in metrics),
            Text("-" if worst is None else f"{worst} ({defined[worst]:.3f})"),
        )
    if one_sided := sum(results.one_sided.values()):
        table.caption = (
            f"a class was missed or invented in {one_sided} comparisons; "
            f"convention for missing structures: {results.scoring.empty}"
        )
    return table
