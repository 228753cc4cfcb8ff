"""One job, handed to the cluster that its configuration names."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import NoReturn

import typer

from launch import watch
from launch.failures import first_failure
from launch.follow import follow
from launch.jobs import submission
from launch.jobs.memory_check import require_fit
from launch.jobs.train_job import Work
from launch.report import report_failure
from launch.slurm import allocation, squeue
from launch.slurm.squeue import INTERRUPTED_CODE
from segresmamba.config import run_folder
from segresmamba.errors import LaunchError
from segresmamba.storage.run_folder import refuse_changes


def start(job: Work, *, watch: bool = False) -> int:
    """Run a job on this machine to its end, or queue it on Slurm.

    Args:
        job: The job.
        watch: Stay until a job on Slurm has ended, showing its log.

    Returns:
        The exit code of the command: 0 for a run that finished or was queued, 130 for one that was
        stopped, 2 for a mistake of the user in a rank, 1 for any other failure.

    Raises:
        UserError: If the job cannot be started as asked.
    """
    require_fit(job.config)
    cluster = job.config.cluster
    match cluster.name:
        case "slurm":
            return _queue(job, watch=watch)
        case "local":
            return _run_ranks(job)
        case "debug":
            return _end(submission.run_in_process(job, _logs(job)))


def describe(job: Work) -> str:
    """What `start` would do: for Slurm the sbatch script, to the letter."""
    cluster = job.config.cluster
    if cluster.name == "slurm":
        return _slurm_executor(job).script()
    return f"cluster={cluster.name}: {cluster.world_size} rank(s) here, {run_folder(job.config)}\n"


def run_in_allocation(job: Work) -> NoReturn:
    """Go on as the ranks' srun, in the allocation that `sbatch slurm/train.sh` got."""
    _refuse_second_job(run_folder(job.config), but=allocation.job_id())
    submission.run_in_allocation(_slurm_executor(job), job)


def _queue(job: Work, *, watch: bool) -> int:
    from segresmamba.tracking import run_hint

    refuse_changes(job.config)
    _refuse_second_job(run_folder(job.config))
    hint = run_hint(run_folder(job.config), job.config.tracking, job.config.run.root)
    queued = submission.submit(_slurm_executor(job), job)
    typer.echo(f"job {queued.job_id}, log {queued.paths.stdout}")
    typer.echo(f"watch and compare: {hint}")
    return follow(queued.job_id, queued.paths.stdout) if watch else 0


def _refuse_second_job(folder: Path, but: str | None = None) -> None:
    """Only one job may go on with a run; a preempted one is still there, in the queue."""
    jobs = submission.submitted_jobs(folder / "logs")
    alive = squeue.living([job_id for job_id in jobs if job_id != but])
    if alive:
        job_id = alive.partition(":")[0].removeprefix("job ")
        raise LaunchError(
            "the run has a job already",
            where=folder,
            got=alive,
            remedy=f"leave it to that one; or to go on with other ranks or settings: scancel "
            f"{job_id}, wait until squeue no longer shows it, then the same command",
        )


def _slurm_executor(job: Work) -> submission.SlurmExecutor:
    folder = run_folder(job.config)
    return submission.slurm_executor(job.config.cluster, folder.name, folder / "logs")


def _run_ranks(job: Work) -> int:
    logs = _logs(job)
    local = submission.local_executor(job.config.cluster, logs)
    submitted = local.submit(job)
    typer.echo(f"{job.config.cluster.world_size} rank(s) here, logs in {logs}", err=True)
    code = watch.wait(local.controller, submitted.paths.stdout)
    failure = first_failure(logs, submitted.job_id)
    if failure is None and code == 0:
        return _end(submitted.results()[0])
    if failure is None and code == INTERRUPTED_CODE:
        return code
    if failure is None:
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        typer.echo(f"the process that watches the ranks ended {how}; logs in {logs}", err=True)
        return 1
    report_failure(job.config, failure)
    log = submitted.task(failure.rank).paths.stdout
    typer.echo(f"rank {failure.rank} failed first; its log: {log}", err=True)
    if failure.rank != 0:  # whose log has just been shown
        typer.echo(failure.text, err=True)
    return failure.exit_code


def _end(result: dict[str, object]) -> int:
    typer.echo(f"{result['status']} at step {result['step']}: {result['folder']}")
    typer.echo(f"watch and compare: {result['ui_hint']}")
    if result["status"] in {"finished", "pruned"}:
        return 0
    typer.echo("the same command goes on from the checkpoint", err=True)
    return INTERRUPTED_CODE


def _logs(job: Work) -> Path:
    """A new folder for this start: process numbers, and so job ids, come again on one machine."""
    logs = run_folder(job.config) / "logs" / time.strftime("%Y%m%d-%H%M%S")
    submission.make_logs(logs)
    return logs
