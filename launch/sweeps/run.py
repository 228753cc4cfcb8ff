"""Running what is missing of a sweep, on this machine or on Slurm, and telling how it stands."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import typer

from launch.jobs import submission
from launch.report import REPORT
from launch.slurm import squeue
from launch.sweeps.pool import Pool
from launch.sweeps.summary import summary_lines, write_summary
from launch.sweeps.sweep import Sweep
from launch.sweeps.trial import FAILED, OVER, QUEUED, STOPPED, UNDER_WAY, Trial
from launch.sweeps.trial_job import TrialJob, catch_up
from segresmamba.storage.run_folder import refuse_changes

# Trials at once unless --max-parallel says otherwise: on Slurm, its users share the cluster.
HERE, ON_SLURM = 1, 8


def run_sweep(sweep: Sweep, max_parallel: int | None) -> int:
    """Run every trial that is neither over nor under way.

    Args:
        sweep: The sweep; every trial has the cluster of the first.
        max_parallel: Trials at once.

    Returns:
        0 if all have finished or wait in Slurm's queue, 1 if one failed, 130 if it was stopped.

    Raises:
        UserError: If another controller is at work, or Slurm refuses the trials.
    """
    for trial in sweep.trials:
        refuse_changes(sweep.config(trial))
    if sweep.search is not None:
        catch_up(sweep)  # before anything is written: its storage may be unreachable
    with sweep.controlled():
        sweep.refresh()
        sweep.write()
        typer.echo(f"{sweep.folder}: {_counts(sweep)}")
        to_the_end = True
        if sweep.config(sweep.trials[0]).cluster.name == "slurm":
            if _queue(sweep, max_parallel or ON_SLURM):
                return 0
        else:
            to_the_end = Pool(sweep, max_parallel or HERE).run()
        sweep.refresh()
        write_summary(sweep)
    show(sweep)
    if not to_the_end:
        return squeue.INTERRUPTED_CODE
    return int(any(trial.state == FAILED for trial in sweep.trials))


def show(sweep: Sweep) -> None:
    """One line a trial, then the traceback of each that failed, then what to type."""
    sweep.refresh()
    for trial in sweep.trials:
        job = f"  job {trial.job}" if trial.job else ""
        dice = "      " if trial.dice is None else f"{trial.dice:.4f}"
        typer.echo(
            f"{trial.number:4d}  {trial.state:8s}  {dice}  {trial.digest:8s}  {trial.run}{job}  "
            f"{sweep.settings(trial)}".rstrip()
        )
    for trial in sweep.trials:
        if trial.failure:
            typer.echo(f"\ntrial {trial.number} failed: {trial.failure}")
    for line in [_counts(sweep), *summary_lines(sweep)]:
        typer.echo(line)
    if any(trial.state in {FAILED, STOPPED} for trial in sweep.trials):
        typer.echo(f"python -m launch resume {sweep.folder}  runs what is missing", err=True)


def _queue(sweep: Sweep, most: int) -> bool:
    """Queue what is missing as an array of jobs; whether anything was.

    All have the same resources: a sweep over cluster.* would run the same experiment twice.
    """
    missing = [trial for trial in sweep.trials if trial.state not in OVER | UNDER_WAY]
    if not missing:
        return False
    mark = f"segresmamba sweep {sweep.folder.resolve()}"
    # A controller that was killed while it submitted has left jobs whose numbers nobody wrote down.
    squeue.cancel_forgotten(mark, {str(trial.job).partition("_")[0] for trial in sweep.trials})
    logs, cluster = sweep.folder / "jobs", sweep.config(missing[0]).cluster
    slurm = submission.slurm_executor(cluster, sweep.name, logs, comment=mark, most=most)

    def note(jobs: list[submission.Job]) -> None:
        for trial, job in zip(missing, jobs, strict=True):
            trial.job, trial.state = job.job_id, QUEUED
            _link_log(trial, job.paths.stdout)
        sweep.write()

    works = [TrialJob(sweep.folder, trial.number) for trial in missing]
    jobs = submission.submit_array(slurm, works, note)
    typer.echo(
        f"job {jobs[0].job_id.partition('_')[0]}: {len(jobs)} trials, {min(most, len(jobs))} at "
        f"once, logs in {logs}"
    )
    typer.echo(f"python -m launch status {sweep.folder}")
    return True


def _link_log(trial: Trial, log: Path) -> None:
    """Let a run's logs/ lead to the log of its job, which is about to be written."""
    folder = Path(trial.run, "logs")
    folder.mkdir(parents=True, exist_ok=True)
    Path(trial.run, REPORT).unlink(missing_ok=True)
    link = folder / log.name
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(log.resolve(), folder.resolve()))


def _counts(sweep: Sweep) -> str:
    counts = Counter(trial.state for trial in sweep.trials)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
