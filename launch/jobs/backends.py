"""The places where a job can run. `cluster` in the configuration chooses one of them.

cluster=debug    InProcess     this process, as the only rank
cluster=local    LocalRanks    processes of this machine, owned by `local_controller`
cluster=slurm    Slurm         a batch job, see `launch.jobs.slurm`
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Protocol

import submitit
import typer

from launch import watch
from launch.failures import INTERRUPTED_CODE, first_failure, report_failure
from launch.jobs.local_controller import LocalPlan
from launch.jobs.memory_check import require_fit
from launch.jobs.rank import refuse_foreign
from launch.jobs.slurm import Slurm
from launch.jobs.slurm_executor import MAX_REQUEUES
from launch.jobs.start import rank_command
from launch.jobs.submission import make_logs
from launch.jobs.train_job import RankJob, RunResult
from launch.slurm.squeue import UNLIMITED_MIN
from segresmamba.config import Config
from segresmamba.storage.run_folder import RunFolder


class Backend(Protocol):
    """A place where a job can run."""

    def start(self, job: RankJob, *, follow: bool = False) -> int:
        """Run a job to its end, or queue it.

        Args:
            job: The job.
            follow: Stay until a queued job has ended, and show its log. On this machine that is
                always so.

        Returns:
            The exit code of the command: 0 for a run that has finished or was queued, 130 for one
            that was stopped, and that of the first error in a rank: see `segresmamba.errors`.

        Raises:
            UserError: If the job cannot be started as asked.
        """

    def describe(self, job: RankJob) -> str:
        """What `start` would do, as text. Changes nothing."""


def backend_for(config: Config) -> Backend:
    """The place that a configuration names."""
    match config.cluster.name:
        case "slurm":
            return Slurm()
        case "local":
            return LocalRanks()
        case "debug":
            return InProcess()


class ThisMachine:
    """What both places on this machine share."""

    def describe(self, job: RankJob) -> str:
        """See `Backend`."""
        config = job.resolved_config()
        cluster, folder = config.cluster, RunFolder.from_config(config).path
        return f"cluster={cluster.name}: {cluster.world_size} rank(s) here, {folder}\n"


class InProcess(ThisMachine):
    """Runs a job as the only rank, in this process; an error opens the debugger."""

    def start(self, job: RankJob, *, follow: bool = False) -> int:
        """See `Backend`."""
        config = job.resolved_config()
        require_fit(config)
        logs = _new_logs(config)
        with submitit.helpers.environment_variables(SUBMITIT_FOLDER=logs):
            submitted = submitit.DebugExecutor(logs).submit(job)
            return _announce(submitted.result())


class LocalExecutor(submitit.LocalExecutor):
    """Submitit's executor with this project's controller, which ends all ranks if one fails."""

    controller: subprocess.Popen[bytes]
    """The process that owns the ranks, once a job is submitted."""

    @property
    def _submitit_command_str(self) -> str:
        return rank_command(super()._submitit_command_str)

    def _submit_command(self, command: str) -> submitit.LocalJob[Any]:
        plan = LocalPlan(
            logs=str(self.folder),
            command=command,
            ranks=self.parameters["tasks_per_node"],
            limit_s=60 * self.parameters["timeout_min"],
            signal_delay_s=self.parameters["signal_delay_s"],
        )
        self.controller = plan.start()
        ranks, job_id = range(plan.ranks), str(self.controller.pid)
        return submitit.LocalJob(self.folder, job_id, ranks, process=self.controller)


class LocalRanks(ThisMachine):
    """Runs the ranks of a job as processes of this machine, and shows their log."""

    def start(self, job: RankJob, *, follow: bool = False) -> int:
        """See `Backend`."""
        config = job.resolved_config()
        require_fit(config)
        logs, cluster = _new_logs(config), config.cluster
        executor = LocalExecutor(logs, max_num_timeout=MAX_REQUEUES)
        executor.update_parameters(
            tasks_per_node=cluster.tasks_per_node,
            timeout_min=cluster.time_min or UNLIMITED_MIN,
            signal_delay_s=cluster.signal_delay_s,
        )
        submitted = executor.submit(job)
        typer.echo(f"{cluster.world_size} rank(s) here, logs in {logs}", err=True)
        code = watch.wait(executor.controller, submitted.paths.stdout)
        failure = first_failure(logs, submitted.job_id)
        if failure is not None:
            report_failure(config, failure)
            log = submitted.task(failure.rank).paths.stdout
            typer.echo(f"rank {failure.rank} failed first; its log: {log}", err=True)
            # The log of rank 0 has just been shown, but a rank that was killed wrote nothing there.
            shown = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            if failure.rank != 0 or failure.text.splitlines()[-1] not in shown:
                typer.echo(failure.text, err=True)
            return failure.exit_code
        if code == 0:
            for number in range(cluster.tasks_per_node):
                refuse_foreign(submitted.task(number).paths.result_pickle)
            return _announce(submitted.results()[0])
        if code == INTERRUPTED_CODE:
            return code
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        typer.echo(f"the process that watches the ranks ended {how}; logs in {logs}", err=True)
        return 1


def _new_logs(config: Config) -> Path:
    """A new folder for each start.

    The job's id is a process number here, and these come again on one machine.
    """
    logs = RunFolder.from_config(config).logs / time.strftime("%Y%m%d-%H%M%S")
    make_logs(logs)
    return logs


def _announce(result: RunResult) -> int:
    """Print how a run has ended; return the command's exit code."""
    typer.echo(f"{result.status} at step {result.step}: {result.folder}")
    typer.echo(f"watch and compare: {result.ui_hint}")
    if result.status in {"finished", "pruned"}:
        return 0
    typer.echo("the same command goes on from the checkpoint", err=True)
    return INTERRUPTED_CODE
