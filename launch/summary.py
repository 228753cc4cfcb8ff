"""What the finished trials of a sweep reached: a table, and a summary run in MLflow."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import mean, stdev

import typer

from launch.sweep import FINISHED, Sweep

PREFIX = "validation/"


def write_summary(sweep: Sweep) -> None:
    """Write summary.json and summary.csv, print Dice, and log mean and spread to MLflow.

    The summary run belongs to the sweep's group. Nothing happens before two trials have finished.
    """
    rows = _rows(sweep)
    if len(rows) < 2:
        return
    names = sorted({name for values in rows.values() for name in values})
    spread = {name: _spread([v[name] for v in rows.values() if name in v]) for name in names}
    content = {"trials": rows, "metrics": spread}
    (sweep.folder / "summary.json").write_text(json.dumps(content, indent=1) + "\n")
    with (sweep.folder / "summary.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["trial", *names])
        for number, values in rows.items():
            table.writerow([number, *(values.get(name, "") for name in names)])
        for key in ("mean", "std"):
            table.writerow([key, *(spread[name][key] for name in names)])
    for name in names:
        if "dice" in name:
            each = "  ".join(f"{v[name]:.4f}" for v in rows.values() if name in v)
            values = spread[name]
            typer.echo(f"{name}: {values['mean']:.4f} +- {values['std']:.4f}   {each}")
    _log(sweep, spread)


def _rows(sweep: Sweep) -> dict[int, dict[str, float]]:
    """The last validation of every finished trial, by its number."""
    from segresmamba.tracking import read_history

    rows = {}
    for trial in sweep.trials:
        if trial.state == FINISHED:
            curves = read_history(Path(trial.run)).curves
            rows[trial.number] = {
                name: curve[-1].value for name, curve in curves.items() if name.startswith(PREFIX)
            }
    return rows


def _spread(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation."""
    spread = stdev(values) if len(values) > 1 else 0.0
    return {"mean": mean(values), "std": spread, "n": len(values)}


def _log(sweep: Sweep, spread: dict[str, dict[str, float]]) -> None:
    from segresmamba.tracking import open_tracker

    config = sweep.config(sweep.trials[0])
    tracker = open_tracker(
        sweep.folder, config.tracking, root=config.run.root, run_name=f"{sweep.name}-summary"
    )
    values = {f"{n}/{key}": v for n, row in spread.items() for key, v in row.items()}
    tracker.metrics(values, step=0, epoch=0.0)
    for name in ("manifest.json", "summary.json", "summary.csv"):
        tracker.artifact(sweep.folder / name)
    tracker.close("finished")
