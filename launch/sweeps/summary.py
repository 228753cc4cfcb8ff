"""What the trials of a sweep have reached: a table, and once all are over a run in MLflow."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from launch.sweeps.sweep import Sweep
from launch.sweeps.trial import FINISHED, METRIC, OVER

PREFIX = "validation/"
JSON, CSV = "summary.json", "summary.csv"

Rows = Mapping[int, Mapping[str, float]]


def write_summary(sweep: Sweep) -> None:
    """Write summary.json and summary.csv of the trials that have finished, and tell MLflow.

    The summary run belongs to the sweep's group: of a grid it has the mean and spread of each
    metric, of a search the best. It is made when all trials are over and something is new.
    """
    rows = _rows(sweep)
    content = json.dumps(_content(sweep, rows), indent=1) + "\n"
    path = sweep.folder / JSON
    is_new = not path.exists() or path.read_text(encoding="utf-8") != content
    if not rows or not is_new:
        return
    _write_table(sweep, rows)
    temporary = path.with_suffix(".part")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)
    if all(trial.state in OVER for trial in sweep.trials):
        sweep.write()  # the states at the end; no command has anything left to queue
        _log(sweep, json.loads(content))


def summary_lines(sweep: Sweep) -> list[str]:
    """The summary as a command prints it: Dice, nothing before two trials have finished."""
    rows = _rows(sweep)
    if len(rows) < 2:
        return []
    if sweep.search is not None:
        best = _best(sweep, rows)
        return [f"best: trial {best['trial']}, {METRIC} {best[METRIC]:.4f}: {best['settings']}"]
    lines = []
    for name, row in _spreads(rows).items():
        if "dice" in name:
            each = "  ".join(f"{values[name]:.4f}" for values in rows.values() if name in values)
            lines.append(f"{name}: {row['mean']:.4f} +- {row['std']:.4f}   {each}")
    return lines


def _rows(sweep: Sweep) -> dict[int, dict[str, float]]:
    """The last validation of every finished trial, by its number."""
    rows = {}
    for trial in sweep.trials:
        history = trial.history() if trial.state == FINISHED else None
        if history is not None:
            curves = history.curves.items()
            rows[trial.number] = {n: curve[-1].value for n, curve in curves if n.startswith(PREFIX)}
    return rows


def _content(sweep: Sweep, rows: Rows) -> dict[str, Any]:
    trials = {
        number: {"settings": sweep.settings(sweep.trials[number]), **values}
        for number, values in rows.items()
    }
    if sweep.search is None:
        return {"trials": trials, "metrics": _spreads(rows)}
    return {"trials": trials, "best": _best(sweep, rows) if rows else None}


def _best(sweep: Sweep, rows: Rows) -> dict[str, Any]:
    number = max(rows, key=lambda row: rows[row][METRIC])
    trial = sweep.trials[number]
    return {
        "trial": number,
        METRIC: rows[number][METRIC],
        "settings": sweep.settings(trial),
        "run": trial.run,
    }


def _spreads(rows: Rows) -> dict[str, dict[str, float]]:
    """Mean and sample standard deviation of every metric."""
    spreads = {}
    for name in sorted({name for values in rows.values() for name in values}):
        column = [values[name] for values in rows.values() if name in values]
        std = stdev(column) if len(column) > 1 else 0.0
        spreads[name] = {"mean": mean(column), "std": std, "n": len(column)}
    return spreads


def _write_table(sweep: Sweep, rows: Rows) -> None:
    spreads = _spreads(rows)
    with (sweep.folder / CSV).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["trial", "settings", *spreads])
        for number, values in rows.items():
            settings = sweep.settings(sweep.trials[number])
            table.writerow([number, settings, *(values.get(name, "") for name in spreads)])
        if sweep.search is None:
            for key in ("mean", "std"):
                table.writerow([key, "", *(row[key] for row in spreads.values())])


def _log(sweep: Sweep, content: dict[str, Any]) -> None:
    from segresmamba.tracking import open_tracker

    config = sweep.config(sweep.trials[0])
    tracking = config.tracking.model_copy(update={"group": sweep.name})
    tracker = open_tracker(
        sweep.folder, tracking, root=config.run.root, run_name=f"{sweep.name}-summary"
    )
    if sweep.search is None:
        values = {f"{n}/{k}": v for n, row in content["metrics"].items() for k, v in row.items()}
    else:
        best = content["best"]
        values = {f"{METRIC}/best": best[METRIC]}
        tracker.tags({"best.settings": best["settings"], "best.run": Path(best["run"]).name})
    tracker.metrics(values, step=0, epoch=0.0)
    for name in ("manifest.json", JSON, CSV):
        tracker.artifact(sweep.folder / name)
    tracker.close("finished")
