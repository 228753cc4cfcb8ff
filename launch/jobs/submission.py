"""Hand jobs to Slurm: all of them or none, and nothing is left of a refused submission."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import submitit
import typer
from submitit.core.utils import FailedJobError

from launch.jobs.slurm_executor import SlurmExecutor
from launch.slurm import environment, limits, squeue
from launch.slurm.commands import RETRY_S, SlurmAwayError, away, is_away
from segresmamba.errors import LaunchError
from segresmamba.storage.run_folder import keep_secrets

# How often the queue is searched for what Slurm has taken without an answer.
_LOOKS = 2

SubmittedJob = submitit.Job[Any]


class TooManyJobsError(LaunchError):
    """Slurm has refused the number of jobs, by a limit of the user or the size of an array."""


def submit_array(
    executor: SlurmExecutor,
    jobs: Sequence[Callable[[], Any]],
    note: Callable[[list[SubmittedJob]], None] = lambda _submitted: None,
) -> list[SubmittedJob]:
    """Queue jobs as one array, or a single one as a plain job.

    Args:
        executor: The executor of all of them.
        jobs: What they run.
        note: Called with the submitted jobs as soon as Slurm has them.

    Raises:
        TooManyJobsError: If the cluster may take fewer jobs at once.
        LaunchError: If there is no sbatch, or it refuses the jobs. Nothing is then left of them.
    """
    if shutil.which("sbatch") is None:
        raise LaunchError(
            "this machine has no sbatch",
            where="cluster",
            got="slurm",
            remedy="submit from a login node of the cluster, or run here with cluster=local",
        )
    logs = executor.folder
    make_logs(logs)
    before = set(logs.iterdir())
    keep_secrets(logs, f"{executor.script()}{jobs}")
    variables = environment.variables_of(executor.script(len(jobs)))
    for line in variables.notes:
        typer.echo(line, err=True)
    try:
        # Submitit prints what the error says too.
        with (
            contextlib.redirect_stderr(io.StringIO()),
            environment.without(variables.left_out),
            executor.batch(),
        ):
            submitted = [executor.submit(job) for job in jobs]
    except FailedJobError as error:
        message = str(error).strip()
        left = _take_back(logs, before) if is_away(message) else ""
        _remove_new(logs, before)
        if left:
            raise away(message, left) from error
        is_number = limits.are_too_many(message)
        number = (
            f"fewer than {len(jobs)} of these jobs" if len(jobs) > 1 else "no more jobs of yours"
        )
        raise (TooManyJobsError if is_number else LaunchError)(
            f"Slurm takes {number} now" if is_number else "Slurm refused the job",
            where="cluster.*",
            got=message or "no message",
            remedy=f"{limits.refusal_remedy(message)}; --dry-run shows the script",
        ) from error
    note(submitted)
    if verdict := limits.hopeless(submitted[0].job_id):
        squeue.cancel(submitted[0].job_id.partition("_")[0])
        _remove_new(logs, before)
        raise LaunchError(
            "the job would have waited for ever, so it was cancelled",
            where="cluster.*",
            got=verdict.got,
            remedy=f"{verdict.remedy}; --dry-run shows the script",
        )
    return submitted


def make_logs(logs: Path) -> None:
    """Make the folder of a job's logs.

    Raises:
        LaunchError: If that is not possible.
    """
    try:
        logs.mkdir(parents=True, exist_ok=True)
        if not os.access(logs, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise LaunchError(
            "the run folder cannot be written",
            where=logs,
            got=error.strerror,
            remedy="choose a writable folder, as in run.root=FOLDER; for the run of another "
            "user, its owner gives it to your group: chmod -R g+w, and umask 002 from then on",
        ) from error


def _take_back(logs: Path, before: set[Path]) -> str:
    """Cancel what Slurm may have taken of a submission to which it gave no answer in time.

    Returns:
        What is left to do, as a remedy.
    """
    scripts = [path for path in set(logs.iterdir()) - before if path.suffix == ".sh"]
    try:
        for _ in range(_LOOKS):
            # slurmctld may answer this before it has done what it was told earlier.
            time.sleep(RETRY_S)
            for job_id in squeue.submitted_from(scripts):
                squeue.cancel(job_id)
    except SlurmAwayError:
        return (
            "`scontrol ping` says when it does. It may have taken the job, which would end at "
            "once: see squeue --me, then give the same command"
        )
    return "nothing is left in the queue: give the same command again"


def _remove_new(logs: Path, before: set[Path]) -> None:
    """Delete what a refused submission has left in the folder of logs."""
    for path in set(logs.iterdir()) - before:
        path.unlink()
    with contextlib.suppress(OSError):  # the folder is not empty: it has an earlier job's files
        logs.rmdir()
        logs.parent.rmdir()
