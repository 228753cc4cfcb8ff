"""Slurm as a place to run: the submission of a run, and the ranks' own allocation."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import typer
from submitit.core.utils import DelayedSubmission, JobPaths, temporary_save_path

from launch import watch
from launch.jobs.memory_check import require_fit
from launch.jobs.slurm_executor import MAX_REQUEUES, SlurmExecutor, rank_executor
from launch.jobs.submission import make_logs, submit_array
from launch.jobs.train_job import RankJob
from launch.slurm import allocation, container, squeue
from segresmamba.config import ClusterConfig, Config
from segresmamba.errors import LaunchError
from segresmamba.storage.run_folder import RunFolder, keep_secrets, refuse_changes

_PICKLE, _LOG = "_submitted.pkl", "_0_log.out"


class Slurm:
    """Queues a job with sbatch; see `launch.jobs.backends.Backend`."""

    def start(self, job: RankJob, *, follow: bool = False) -> int:
        """Queue a job.

        Args:
            job: The job.
            follow: Stay until it has ended, and show its log.

        Returns:
            0 once the job is queued, or the job's exit code if it was followed.

        Raises:
            UserError: If the run has a job already, its settings do not fit what its folder holds,
                or Slurm refuses the job.
        """
        # Imported here: `launch` itself starts without the trackers.
        from segresmamba.tracking import run_hint

        config = job.resolved_config()
        require_fit(config)
        refuse_changes(config)
        folder = RunFolder.from_config(config)
        _refuse_second_job(folder)
        # Before the job is queued, because it fails for wrong settings of the tracking.
        hint = run_hint(folder.path, config.tracking, config.run.root)
        (queued,) = submit_array(_executor(config), [job])
        typer.echo(f"job {queued.job_id}, log {queued.paths.stdout}")
        typer.echo(f"watch and compare: {hint}")
        return watch.follow(queued.job_id, queued.paths.stdout) if follow else 0

    def describe(self, job: RankJob) -> str:
        """The sbatch script that `start` would submit, to the letter. Changes nothing."""
        return _executor(job.resolved_config()).described()

    def run_in_allocation(self, job: RankJob) -> NoReturn:
        """Become the script that `start` would have queued, inside the job that sbatch made.

        A requeued job comes here again and keeps the pickle that its last start left. From here on
        the job's output goes where that of a submitted job goes.
        """
        config = job.resolved_config()
        _refuse_second_job(RunFolder.from_config(config), but=allocation.job_id())
        executor = _executor(config)
        paths = JobPaths(executor.folder, job_id=allocation.job_id())
        make_logs(paths.folder)
        keep_secrets(paths.folder, f"{executor.script()}{job}")
        if not paths.submitted_pickle.exists():
            delayed = DelayedSubmission(job)
            delayed.set_timeout(executor.parameters["time"], MAX_REQUEUES)
            with temporary_save_path(paths.submitted_pickle) as temporary:
                delayed.dump(temporary)
        paths.submission_file.write_text(executor.script())
        print(f"log: {paths.stdout}", flush=True)
        with paths.stdout.open("ab") as log:
            os.dup2(log.fileno(), sys.stdout.fileno())
            os.dup2(log.fileno(), sys.stderr.fileno())
        os.execvp("bash", ["bash", str(paths.submission_file)])


def submitted_jobs(logs: Path) -> list[str]:
    """The ids of all jobs whose logs are in this folder."""
    return [path.name.removesuffix(_PICKLE) for path in sorted(logs.glob(f"*{_PICKLE}"))]


def jobs_of_run(logs: Path) -> list[str]:
    """The ids of all jobs of a run: its own, and those of a sweep, which it has links to."""
    links = [path.name.removesuffix(_LOG) for path in sorted(logs.glob(f"*{_LOG}"))]
    return list(dict.fromkeys([*submitted_jobs(logs), *links]))


def _executor(config: Config) -> SlurmExecutor:
    folder = RunFolder.from_config(config)
    return rank_executor(cluster_of(config), folder.path.name, folder.logs)


def cluster_of(config: Config) -> ClusterConfig:
    """The cluster of a run, with what the container of its ranks has to see."""
    places = (config.run.root, config.data.store, config.train.init_from)
    return container.with_binds(config.cluster, *places)


def _refuse_second_job(folder: RunFolder, but: str | None = None) -> None:
    """Only one job may go on with a run. A preempted job is still there, in the queue.

    Args:
        folder: The run.
        but: The job that this process runs in.

    Raises:
        LaunchError: Names the other job, or says that Slurm does not answer.
    """
    others = [job_id for job_id in jobs_of_run(folder.logs) if job_id != but]
    live = squeue.living(others, patiently=but is not None)
    if live:
        raise LaunchError(
            "the run has a job already",
            where=folder.path,
            got=str(live),
            remedy="leave the run to that job; to go on with other ranks or settings, scancel "
            f"{live.job_id}, wait until squeue no longer shows it, then give the same command",
        )
