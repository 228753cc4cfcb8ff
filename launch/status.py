"""Single runs, as `python -m launch status` shows them beside the sweeps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from launch.jobs.slurm import submitted_jobs
from launch.run_state import FAILED, METRIC, STOPPED, find_state, read_failure, read_run
from launch.slurm import limits, squeue
from launch.slurm.squeue import JobState
from launch.sweeps.sweep import Sweep
from segresmamba.storage.locks import is_locked
from segresmamba.storage.run_folder import RunFolder

_LOG = "_0_log.out"


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands."""

    folder: Path
    state: str
    """See `find_state`."""
    progress: str
    """The last step of how many, as text; empty before the first."""
    dice: float | None
    """Its last validation."""
    last_record: str
    """How long ago it last recorded something; empty if it never did."""
    job_id: str | None
    """The newest of its jobs on Slurm."""
    job: JobState | None
    """What Slurm says about that job."""
    failure: str
    """Why it failed; empty if it did not."""

    @classmethod
    def read_all(cls, folders: Sequence[Path]) -> list[RunStatus]:
        """Find out where the runs in these folders stand, with one question to Slurm."""
        # One question for all jobs: Slurm's controller serves the whole cluster.
        newest = {folder: _newest_job(RunFolder(folder)) for folder in folders}
        jobs = squeue.job_states([job_id for job_id in newest.values() if job_id])
        found = []
        for path, job_id in newest.items():
            folder, job, history = RunFolder(path), jobs.get(job_id or ""), read_run(path)
            state = find_state(history, job, is_locked=is_locked(folder.journal))
            failure = read_failure(folder, job_id) if state == FAILED else ""
            dice = history.last(METRIC) if history else None
            losses = history.curves.get("train/loss") if history else None
            steps = history.settings.get("train.max_steps", "?") if history else "?"
            progress = f"step {losses[-1].step}/{steps}" if losses else ""
            age = _age(folder.journal)
            found.append(cls(path, state, progress, dice, age, job_id, job, failure))
        return found

    def line(self) -> str:
        """One line for the terminal."""
        dice = "" if self.dice is None else f"Dice {self.dice:.4f}"
        job = f"job {self.job_id} {self.job or 'unknown to Slurm'}" if self.job_id else ""
        cells = f"{self.state:8s}  {self.progress:18s}  {dice:11s}  {self.last_record:10s}"
        return f"{cells}  {self.folder}  {job}".rstrip()


def single_runs(root: Path, sweeps: Sequence[Sweep]) -> list[Path]:
    """Folders of the runs in `root` that have begun or are queued, without the sweeps' trials."""
    trials = {Path(trial.run).resolve() for sweep in sweeps for trial in sweep.trials}
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return [path for path in folders if is_single(path) and path.resolve() not in trials]


def is_single(path: Path) -> bool:
    """Whether a run has begun in this folder, or a job of a run is queued."""
    folder = RunFolder(path)
    return folder.config.is_file() or bool(submitted_jobs(folder.logs))


def show_runs(folders: Sequence[Path]) -> None:
    """Print one line per run, then why runs have failed, then the command that goes on."""
    runs = RunStatus.read_all(folders)
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


def _newest_job(folder: RunFolder) -> str | None:
    # The pickle of a trial's job lies with the sweep; the run has only a link to the log.
    links = [path.name.removesuffix(_LOG) for path in folder.logs.glob(f"*{_LOG}")]
    jobs = [*submitted_jobs(folder.logs), *links]
    return max(jobs, key=lambda job_id: int(job_id.partition("_")[0]), default=None)


def _age(path: Path) -> str:
    """How long ago a file was last written, roughly; empty if there is no file."""
    if not path.exists():
        return ""
    minutes = max(time.time() - path.stat().st_mtime, 0) / 60
    for size, unit in ((24 * 60, "d"), (60, "h")):
        if minutes >= 2 * size:
            return f"{minutes / size:.0f} {unit} ago"
    return f"{minutes:.0f} min ago"
