"""Single runs, as `python -m launch status` shows them beside the sweeps."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from launch.jobs.slurm import jobs_of_run, submitted_jobs
from launch.run_index import RunSummary, summaries
from launch.run_state import FAILED, METRIC, STOPPED, find_state, read_failure
from launch.selection import Row, Selection, cell
from launch.slurm import limits, squeue
from launch.slurm.squeue import JobState
from launch.sweeps.sweep import Sweep
from segresmamba.storage.locks import is_locked
from segresmamba.storage.run_folder import RunFolder


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands."""

    folder: Path
    state: str
    """See `find_state`."""
    recorded: RunSummary | None
    """What it has recorded; None if it has not begun."""
    job_id: str | None
    """The newest of its jobs on Slurm."""
    job: JobState | None
    """What Slurm says about that job."""
    failure: str
    """Why it failed; empty if it did not."""

    @property
    def dice(self) -> float | None:
        """Its last validation."""
        return self.recorded.last(METRIC) if self.recorded else None

    @property
    def energy_wh(self) -> float | None:
        """Energy of all its starts."""
        return self.recorded.energy_wh if self.recorded else None

    @property
    def recorded_s(self) -> float | None:
        """When it last recorded something, in seconds since the epoch; None if it never did."""
        return self.recorded.recorded_s if self.recorded else None

    def line(self) -> str:
        """One line for the terminal."""
        run = self.recorded
        progress = f"step {run.step}/{run.max_steps}" if run and run.step is not None else ""
        job = f"job {self.job_id} {self.job or 'unknown to Slurm'}" if self.job_id else ""
        cells = f"{self.state:8s}  {progress:18s}  {cell(self.dice, 'Dice {:6.4f}')}  "
        cells += f"{cell(self.energy_wh, '{:9.2f} Wh')}  {_age(self.recorded_s):10s}"
        return f"{cells}  {self.folder}  {job}".rstrip()


def read_all(sweeps: Sequence[Sweep], folders: Sequence[Path]) -> list[RunStatus]:
    """Find out where sweeps and the runs in these folders stand, with one question to Slurm.

    Its controller serves the whole cluster, and a question to one that is away takes 20 s.
    """
    newest = {
        folder: max(
            jobs_of_run(RunFolder(folder).logs),
            key=lambda job_id: int(job_id.partition("_")[0]),
            default=None,
        )
        for folder in folders
    }
    of_sweeps = [job_id for sweep in sweeps for job_id in sweep.jobs()]
    states = squeue.job_states([*of_sweeps, *(job_id for job_id in newest.values() if job_id)])
    for sweep in sweeps:
        sweep.refresh(states=states)
    recorded = summaries(folders)
    found = []
    for path, job_id in newest.items():
        folder, job, run = RunFolder(path), states.get(job_id or ""), recorded.get(path)
        state = find_state(run, job, is_locked=is_locked(folder.journal))
        failure = read_failure(folder, job_id) if state == FAILED else ""
        found.append(RunStatus(path, state, run, job_id, job, failure))
    return found


def single_runs(root: Path, sweeps: Sequence[Sweep]) -> list[Path]:
    """Folders of the runs in `root` that have begun or are queued, without the sweeps' trials."""
    trials = {Path(trial.run).resolve() for sweep in sweeps for trial in sweep.trials}
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return [path for path in folders if is_single(path) and path.resolve() not in trials]


def is_single(path: Path) -> bool:
    """Whether a run has begun in this folder, or a job of a run is queued."""
    folder = RunFolder(path)
    return folder.config.is_file() or bool(submitted_jobs(folder.logs))


def show_runs(runs: Sequence[RunStatus]) -> None:
    """Print one line per run, then why runs have failed, then the command that goes on."""
    for run in runs:
        typer.echo(run.line())
    for run in runs:
        if run.failure:
            typer.echo(f"\n{run.folder} failed: {run.failure}")
    for run in runs:
        if run.job and (verdict := limits.verdict_of(run.job.reason)):
            typer.echo(f"\n{run.folder} will not start: {verdict.got}; {verdict.remedy}")
    for run in runs:
        if run.state in {FAILED, STOPPED}:
            typer.echo(f"python -m launch resume {run.folder}  goes on with it", err=True)


def as_json(sweeps: Sequence[Sweep], runs: Sequence[RunStatus], selection: Selection) -> str:
    """All trials and runs that are asked for, as a JSON list for scripts."""
    rows = []
    for sweep in sweeps:
        rows += [
            _row(trial.folder.path, trial, trial.job, trial.read_failure())
            | {"sweep": sweep.name, "trial": trial.number, "settings": sweep.settings(trial)}
            for trial in selection.of(sweep.trials)
        ]
    for run in runs:
        steps = {"step": run.recorded.step, "of": run.recorded.max_steps} if run.recorded else {}
        rows.append(_row(run.folder, run, run.job_id, run.failure) | steps)
    return json.dumps(rows, indent=1)


def _row(folder: Path, row: Row, job_id: str | None, failure: str) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "state": row.state,
        # JSON has no NaN.
        "dice": row.dice if row.dice is not None and math.isfinite(row.dice) else None,
        "energy_wh": row.energy_wh,
        "recorded_s": row.recorded_s,
        "job": job_id,
        "failure": failure,
    }


def _age(recorded_s: float | None) -> str:
    """How long ago something was recorded, roughly; empty if nothing was."""
    if recorded_s is None:
        return ""
    minutes = max(time.time() - recorded_s, 0) / 60
    for size, unit in ((24 * 60, "d"), (60, "h")):
        if minutes >= 2 * size:
            return f"{minutes / size:.0f} {unit} ago"
    return f"{minutes:.0f} min ago"
