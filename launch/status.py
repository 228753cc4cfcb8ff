"""Single runs, as `python -m launch status` shows them beside the sweeps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from launch.jobs import submission
from launch.slurm import squeue
from launch.slurm.squeue import JobState
from launch.sweeps.sweep import Sweep
from launch.sweeps.trial import FAILED, STOPPED, Trial
from segresmamba.storage.locks import is_locked

if TYPE_CHECKING:
    from segresmamba.tracking import History

_CONFIG, _LOSS = "config.yaml", "train/loss"
_LOG = "_0_log.out"


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands."""

    trial: Trial
    """It alone, as if it were a sweep's: where a run stands is found out in one place."""
    job: JobState | None
    """The newest of its jobs on Slurm."""
    history: History | None
    heard: str
    """How long ago it last recorded something."""

    @classmethod
    def all_of(cls, folders: Sequence[Path]) -> list[RunStatus]:
        """Find out where the runs in these folders stand; Slurm is asked once."""
        trials = [Trial(0, [], "", str(folder), job=_newest_job(folder)) for folder in folders]
        jobs = squeue.job_states([trial.job for trial in trials if trial.job])
        return [cls._of(trial, jobs.get(trial.job or "")) for trial in trials]

    @classmethod
    def _of(cls, trial: Trial, job: JobState | None) -> RunStatus:
        from segresmamba.tracking import JOURNAL_NAME

        journal = Path(trial.run, JOURNAL_NAME)
        history = trial.refresh(job, is_locked=is_locked(journal), must_measure=False)
        return cls(trial, job, history, _ago(journal))

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return Path(self.trial.run)

    def line(self) -> str:
        """State, step, Dice, the time since it was last heard of, folder, job."""
        curve = self.history.curves.get(_LOSS) if self.history else None
        most = self.history.settings.get("train.max_steps", "?") if self.history else "?"
        step = f"step {curve[-1].step}/{most}" if curve else ""
        dice = "" if self.trial.dice is None else f"Dice {self.trial.dice:.4f}"
        job = f"job {self.trial.job} {self.job or 'unknown to Slurm'}" if self.trial.job else ""
        cells = f"{self.trial.state:8s}  {step:18s}  {dice:11s}  {self.heard:10s}"
        return f"{cells}  {self.folder}  {job}".rstrip()


def single_runs(root: Path, sweeps: Sequence[Sweep]) -> list[Path]:
    """The folders of all runs in `root` that have begun or wait in a queue, but for trials."""
    trials = {Path(trial.run).resolve() for sweep in sweeps for trial in sweep.trials}
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return [path for path in folders if is_single(path) and path.resolve() not in trials]


def is_single(folder: Path) -> bool:
    """Whether a run has begun in this folder, or a job of one waits in a queue."""
    return (folder / _CONFIG).is_file() or bool(submission.submitted_jobs(folder / "logs"))


def show_runs(folders: Sequence[Path]) -> None:
    """One line a run, then why each that failed did, then what to type."""
    runs = RunStatus.all_of(folders)
    for run in runs:
        typer.echo(run.line())
    for run in runs:
        if run.trial.failure:
            typer.echo(f"\n{run.folder} failed: {run.trial.failure}")
    for run in runs:
        if run.trial.state in {FAILED, STOPPED}:
            typer.echo(f"python -m launch resume {run.folder}  goes on with it", err=True)


def _newest_job(folder: Path) -> str | None:
    logs = folder / "logs"
    # A trial has no job of its own there, but links to its logs.
    links = [path.name.removesuffix(_LOG) for path in logs.glob(f"*{_LOG}")]
    jobs = [*submission.submitted_jobs(logs), *links]
    return max(jobs, key=lambda job_id: int(job_id.partition("_")[0]), default=None)


def _ago(path: Path) -> str:
    """How long ago a file was last written, roughly; nothing if it is not there."""
    if not path.exists():
        return ""
    minutes = max(time.time() - path.stat().st_mtime, 0) / 60
    for size, unit in ((24 * 60, "d"), (60, "h")):
        if minutes >= 2 * size:
            return f"{minutes / size:.0f} {unit} ago"
    return f"{minutes:.0f} min ago"
