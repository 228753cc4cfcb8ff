"""What the trials of a sweep have reached: two files, and a run in MLflow once all are over."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from launch.run_index import summaries
from launch.run_state import FINISHED, METRIC, OVER
from launch.sweeps.sweep import MANIFEST, Sweep
from segresmamba.storage.atomic import atomic_path, write_text

PREFIX = "validation/"
JSON, CSV = "summary.json", "summary.csv"

Rows = Mapping[int, Mapping[str, float]]


def write_summary(sweep: Sweep) -> None:
    """Write summary.json and summary.csv of the trials that have finished, and tell MLflow.

    MLflow gets a summary run in the sweep's group once all trials are over and something is new:
    for a grid the mean and spread of each metric, for a search the best trial.
    """
    rows = _rows(sweep)
    if not rows:
        return
    spreads = _spreads(rows)
    content: dict[str, Any] = {
        "trials": {
            number: {"settings": sweep.settings(sweep.trials[number]), **values}
            for number, values in rows.items()
        }
    }
    if sweep.search is None:
        content["metrics"] = spreads
    else:
        content["best"] = _best(sweep, rows)
    path, text = sweep.folder / JSON, json.dumps(content, indent=1) + "\n"
    # Nothing new: without this check each `launch sweep` would add a summary run to MLflow.
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    with (
        atomic_path(sweep.folder / CSV) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        table.writerow(["trial", "settings", *spreads])
        for number, values in rows.items():
            settings = sweep.settings(sweep.trials[number])
            table.writerow([number, settings, *(values.get(name, "") for name in spreads)])
        if sweep.search is None:
            for key in ("mean", "std"):
                table.writerow([key, "", *(row[key] for row in spreads.values())])
    write_text(path, text)
    if all(trial.state in OVER for trial in sweep.trials):
        sweep.write()  # the last states: no later command will write them
        _log(sweep, content)


def summary_lines(sweep: Sweep) -> list[str]:
    """The Dice of the trials as a command prints it; nothing before two have finished."""
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
    finished = {trial.folder.path: trial for trial in sweep.trials if trial.state == FINISHED}
    recorded = summaries(finished)
    return {
        trial.number: {key: v for key, v in recorded[path].values.items() if key.startswith(PREFIX)}
        for path, trial in finished.items()
        if path in recorded
    }


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


def _log(sweep: Sweep, content: dict[str, Any]) -> None:
    from segresmamba.tracking import SUMMARY, open_tracker

    config = sweep.config(sweep.trials[0])
    tracking = config.tracking.model_copy(update={"group": sweep.name})
    tracker = open_tracker(
        sweep.folder, tracking, root=config.run.root, run_name=f"{sweep.name}-summary"
    )
    tracker.tags({SUMMARY: sweep.name})
    if sweep.search is None:
        values = {f"{n}/{k}": v for n, row in content["metrics"].items() for k, v in row.items()}
    else:
        best = content["best"]
        values = {f"{METRIC}/best": best[METRIC]}
        tracker.tags({"best.settings": best["settings"], "best.run": Path(best["run"]).name})
    tracker.metrics(values, step=0, epoch=0.0)
    for name in (MANIFEST, JSON, CSV):
        tracker.artifact(sweep.folder / name)
    tracker.close("finished")
