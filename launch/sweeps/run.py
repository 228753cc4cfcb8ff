"""Runs what is missing of a sweep, on this machine or on Slurm, and shows where it stands."""

from __future__ import annotations

from collections import Counter

import typer

from launch.failures import INTERRUPTED_CODE
from launch.run_state import FAILED, STOPPED
from launch.selection import EVERYTHING, Selection, cell
from launch.slurm import limits
from launch.sweeps.parts import missing, queue
from launch.sweeps.pool import Pool
from launch.sweeps.summary import summary_lines, write_summary
from launch.sweeps.sweep import Sweep
from launch.sweeps.trial_job import catch_up
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
            if trials := missing(sweep.trials):
                queue(trials, sweep, max_parallel or ON_SLURM)
                typer.echo(f"python -m launch status {sweep.folder}")
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
    """Print one line per trial, then why trials have failed, then the command that goes on.

    Args:
        sweep: The sweep, whose trials were just refreshed.
        selection: Which trials, in which order.
    """
    shown = selection.of(sweep.trials)
    for trial in shown:
        job = f"  job {trial.job}" if trial.job else ""
        job += f" ({trial.reason})" if trial.reason else ""
        reached = f"{cell(trial.dice, '{:6.4f}')}  {cell(trial.energy_wh, '{:9.2f} Wh')}"
        typer.echo(
            f"{trial.number:4d}  {trial.state:8s}  {reached}  {trial.digest:8s}  {trial.run}{job}  "
            f"{sweep.settings(trial)}".rstrip()
        )
    for trial in shown:
        if failure := trial.read_failure():
            typer.echo(f"\ntrial {trial.number} failed: {failure}")
    for reason in sorted({trial.reason for trial in shown}):
        if verdict := limits.verdict_of(reason):
            typer.echo(f"\ntrials will not start: {verdict.got}; {verdict.remedy}")
    for line in [_counts(sweep), *summary_lines(sweep)]:
        typer.echo(line)
    if any(trial.state in {FAILED, STOPPED} for trial in sweep.trials):
        typer.echo(f"python -m launch resume {sweep.folder}  runs what is missing", err=True)


def _counts(sweep: Sweep) -> str:
    counts = Counter(trial.state for trial in sweep.trials)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
