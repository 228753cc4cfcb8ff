"""Runs what is missing of a sweep, on this machine or on Slurm, and shows where it stands."""

from __future__ import annotations

import os
from collections import Counter

import typer

from launch.failures import INTERRUPTED_CODE
from launch.jobs.slurm import SubmittedJob, cluster_of, rank_executor, submit_array
from launch.run_state import FAILED, OVER, QUEUED, STOPPED, UNDER_WAY
from launch.selection import EVERYTHING, Selection, cell
from launch.slurm import squeue
from launch.sweeps.pool import Pool
from launch.sweeps.summary import summary_lines, write_summary
from launch.sweeps.sweep import Sweep
from launch.sweeps.trial_job import TrialJob, catch_up
from segresmamba.storage.run_folder import refuse_changes

# Trials at once unless --max-parallel says otherwise. On Slurm other users need nodes too.
HERE, ON_SLURM = 1, 8


def run_sweep(sweep: Sweep, max_parallel: int | None) -> int:
    """Run every trial that is neither over nor under way.

    Args:
        sweep: The sweep; every trial has the cluster of the first.
        max_parallel: Trials at once.

    Returns:
        0 if all have finished or wait in Slurm's queue, 1 if one failed, 130 if it was stopped.

    Raises:
        UserError: If another process controls the sweep, or Slurm refuses the trials.
    """
    for trial in sweep.trials:
        refuse_changes(sweep.config(trial))
    if sweep.search is not None:
        catch_up(sweep)  # first, so that nothing is written if its storage cannot be reached
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
        return INTERRUPTED_CODE
    return int(any(trial.state == FAILED for trial in sweep.trials))


def show(sweep: Sweep, selection: Selection = EVERYTHING) -> None:
    """Print one line per trial, then why trials have failed, then the command that goes on."""
    sweep.refresh()
    shown = selection.of(sweep.trials)
    for trial in shown:
        job = f"  job {trial.job}" if trial.job else ""
        reached = f"{cell(trial.dice, '{:6.4f}')}  {cell(trial.energy_wh, '{:9.2f} Wh')}"
        typer.echo(
            f"{trial.number:4d}  {trial.state:8s}  {reached}  {trial.digest:8s}  {trial.run}{job}  "
            f"{sweep.settings(trial)}".rstrip()
        )
    for trial in shown:
        if failure := trial.read_failure():
            typer.echo(f"\ntrial {trial.number} failed: {failure}")
    for line in [_counts(sweep), *summary_lines(sweep)]:
        typer.echo(line)
    if any(trial.state in {FAILED, STOPPED} for trial in sweep.trials):
        typer.echo(f"python -m launch resume {sweep.folder}  runs what is missing", err=True)


def _queue(sweep: Sweep, most: int) -> bool:
    """Queue what is missing as one array of jobs; return whether anything was missing.

    All jobs have the same resources, because cluster.* changes no result and so is never swept.
    """
    missing = [trial for trial in sweep.trials if trial.state not in OVER | UNDER_WAY]
    if not missing:
        return False
    comment = f"segresmamba sweep {sweep.folder.resolve()}"
    # A controller that was killed between sbatch and the manifest has left jobs that only this
    # comment leads to. They would run the same trials a second time.
    squeue.cancel_forgotten(comment, {str(trial.job).partition("_")[0] for trial in sweep.trials})
    logs, cluster = sweep.folder / "jobs", cluster_of(sweep.config(missing[0]))
    executor = rank_executor(cluster, sweep.name, logs, comment=comment, most=most)

    def note(jobs: list[SubmittedJob]) -> None:
        for trial, job in zip(missing, jobs, strict=True):
            trial.job, trial.state = job.job_id, QUEUED
            # The run's logs lead to the log of its job, which is about to be written.
            log, folder = job.paths.stdout, trial.folder.logs
            folder.mkdir(parents=True, exist_ok=True)
            trial.folder.failure.unlink(missing_ok=True)
            link = folder / log.name
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(log.resolve(), folder.resolve()))
        sweep.write()

    jobs = submit_array(executor, [TrialJob(sweep.folder, t.number) for t in missing], note)
    typer.echo(
        f"job {jobs[0].job_id.partition('_')[0]}: {len(jobs)} trials, {min(most, len(jobs))} at "
        f"once, logs in {logs}"
    )
    typer.echo(f"python -m launch status {sweep.folder}")
    return True


def _counts(sweep: Sweep) -> str:
    counts = Counter(trial.state for trial in sweep.trials)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
