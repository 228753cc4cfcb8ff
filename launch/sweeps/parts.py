"""Trials on Slurm: one array, or several that follow each other where a limit allows no more.

Slurm limits the size of an array (`MaxArraySize`) and how many jobs a user may have in the queue.
A part is then as large as Slurm takes, and a small job that starts when it has ended queues the
next one. So no process has to stay on the login node.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from launch.jobs.rank import resubmission
from launch.jobs.slurm import cluster_of, jobs_of_run
from launch.jobs.slurm_executor import rank_executor, share_executor
from launch.jobs.submission import SubmittedJob, TooManyJobsError, submit_array
from launch.run_state import OVER, QUEUED, UNDER_WAY, UNKNOWN
from launch.slurm import allocation, limits, squeue
from launch.slurm.commands import away
from launch.sweeps.sweep import Sweep
from launch.sweeps.trial import Trial
from launch.sweeps.trial_job import TrialJob
from segresmamba.config import ClusterConfig
from segresmamba.errors import UserError, is_passing, sort_error

# What the small job between two parts takes over from the trials. It needs no GPU; a site that
# wants one all the same says so in `cluster.next_part`.
_KEPT = {
    "partition",
    "account",
    "qos",
    "exclude",
    "setup",
    "env",
    "interface",
    "requeue",
    "python",
    "reservation",
}
_SMALL_MIN = 30
# How often it tries again while other jobs of the user fill the queue.
_RETRY_S = 60.0


@dataclass(frozen=True)
class NextPart:
    """The job between two parts: it queues the trials that the parts before have left."""

    sweep: Path
    """Folder of the sweep."""
    trials: tuple[int, ...]
    """Their numbers."""
    most: int
    """How many may run at once."""

    def __call__(self) -> None:
        """Queue the next part. At its time limit the job itself is queued again.

        Raises:
            SystemExit: With code 2 if Slurm refuses it for good; the reason is then in the log.
        """
        while True:
            try:
                sweep = Sweep.read(self.sweep)
                with sweep.controlled():
                    sweep.refresh()
                    left = [sweep.trials[number] for number in self.trials]
                    queue(missing(left), sweep, self.most)
            except (UserError, OSError) as error:
                if not (isinstance(error, TooManyJobsError) or is_passing(error)):
                    verdict = sort_error(error)
                    sys.stderr.write(verdict.text + "\n")
                    sys.exit(verdict.exit_code)
                why = error.got if isinstance(error, UserError) else error
                sys.stderr.write(f"{why}; trying again every {_RETRY_S:.0f} s\n")
                time.sleep(_RETRY_S)
            else:
                return

    def checkpoint(self) -> object:
        """What is submitted again after a requeue."""
        return resubmission(self)


def missing(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that are neither over nor under way, nor trained by a job outside of the sweep.

    Raises:
        SlurmAwayError: If Slurm does not say whether a trial has a job. A second one would train
            the same run.
    """
    left = [trial for trial in trials if trial.state not in OVER | UNDER_WAY]
    # `launch train` with the same settings makes the same run.
    jobs = {trial.number: jobs_of_run(trial.folder.logs) for trial in left}
    # Slurm, if it is away, is not asked a second time: that takes 20 s.
    is_away = any(trial.state == UNKNOWN for trial in trials)
    asked = [] if is_away else [job_id for ids in jobs.values() for job_id in ids]
    states = squeue.job_states(asked)
    if is_away or any(state.name == squeue.UNKNOWN for state in states.values()):
        raise away("no answer about the jobs of the sweep")
    trained = {
        number: job_id
        for number, ids in jobs.items()
        for job_id in ids
        if job_id in states and not states[job_id].ended
    }
    for number, job_id in trained.items():
        typer.echo(f"trial {number} is left to job {job_id}: {states[job_id]}", err=True)
    return [trial for trial in left if trial.number not in trained]


def queue(trials: Sequence[Trial], sweep: Sweep, most: int) -> None:
    """Queue trials, as one array if Slurm takes it.

    All jobs have the same resources, because cluster.* changes no result and so is never swept.

    Args:
        trials: Those that are missing.
        sweep: Their sweep, which this process controls.
        most: How many may run at once.

    Raises:
        LaunchError: If Slurm refuses even one of them. Nothing is then left in the queue.
    """
    if not trials:
        return
    comment = f"segresmamba sweep {sweep.folder.resolve()}"
    # A controller that was killed between sbatch and the manifest has left jobs that only this
    # comment leads to. They would run the same trials a second time.
    known = {str(trial.job).partition("_")[0] for trial in sweep.trials}
    squeue.cancel_forgotten(comment, known | allocation.own_id())
    size = len(trials)
    while True:
        try:
            _queue_part(trials[:size], trials[size:], sweep, most, comment)
        except TooManyJobsError as error:
            largest = limits.max_array_size() if "array" in str(error.got) else None
            size = largest if largest and largest < size else size // 2
            if not size:
                raise
        else:
            return


def _queue_part(
    part: Sequence[Trial], rest: Sequence[Trial], sweep: Sweep, most: int, comment: str
) -> None:
    """Queue an array, and the small job after it if trials are left."""
    logs, cluster = sweep.folder / "jobs", cluster_of(sweep.config(part[0]))
    executor = rank_executor(cluster, sweep.name, logs, comment=comment, most=most)

    def note(jobs: list[SubmittedJob]) -> None:
        for trial, job in zip(part, jobs, strict=True):
            trial.job, trial.state = job.job_id, QUEUED
            trial.folder.failure.unlink(missing_ok=True)
            trial.link_log(job.paths.stdout)
        sweep.write()

    # Held until the array has a number. Queued after the array, it might be one job too many.
    follower = _hold_follower(rest, sweep, most, comment, cluster) if rest else None
    try:
        jobs = submit_array(executor, [TrialJob(sweep.folder, t.number) for t in part], note)
    except BaseException:
        if follower:
            squeue.cancel(follower)
        raise
    array = jobs[0].job_id.partition("_")[0]
    typer.echo(f"job {array}: {len(jobs)} trials, {min(most, len(jobs))} at once, logs in {logs}")
    if follower:
        squeue.release_after(follower, array)
        typer.echo(f"then job {follower} queues the other {len(rest)} trials")
        typer.echo(f"stop: scancel {follower} {array}; the same command goes on")


def _hold_follower(
    rest: Sequence[Trial], sweep: Sweep, most: int, comment: str, cluster: ClusterConfig
) -> str:
    small = {"name": "slurm", "time_min": _SMALL_MIN, "cpus_per_task": 1}
    small |= cluster.model_dump(include=_KEPT) | cluster.next_part
    executor = share_executor(
        ClusterConfig.model_validate(small),
        f"{sweep.name}-next",
        sweep.folder / "jobs",
        comment=comment,
        hold=True,
    )
    job = NextPart(Path(os.path.abspath(sweep.folder)), tuple(t.number for t in rest), most)
    return str(submit_array(executor, [job])[0].job_id)
