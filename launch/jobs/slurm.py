"""Slurm as a place to run: submitit's executor, the submission, and the ranks' own allocation."""

from __future__ import annotations

import contextlib
import copy
import errno
import io
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import submitit
import typer
from submitit.core.utils import DelayedSubmission, FailedJobError, JobPaths, temporary_save_path

from launch import watch
from launch.jobs.memory_check import require_fit
from launch.jobs.start import rank_command
from launch.jobs.train_job import RankJob
from launch.slurm import allocation, container, environment, limits, script, squeue
from launch.slurm.commands import RETRY_S, SlurmAwayError, away, is_away
from launch.slurm.options import with_site_options
from segresmamba.config import ClusterConfig, Config
from segresmamba.config.section import one_line
from segresmamba.errors import LaunchError
from segresmamba.storage.run_folder import RunFolder, keep_secrets, refuse_changes

# How often a run may be preempted or reach its time limit. Submitit's default is 3, and a long run
# on a busy cluster needs more.
MAX_REQUEUES = 1000
_PICKLE, _LOG = "_submitted.pkl", "_0_log.out"
# How often the queue is searched for what Slurm has taken without an answer.
_LOOKS = 2

SubmittedJob = submitit.Job[Any]


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


class TooManyJobsError(LaunchError):
    """Slurm has refused the number of jobs, by a limit of the user or the size of an array."""


class SlurmExecutor(submitit.SlurmExecutor):
    """Submitit's executor. This one also writes its script where there is no Slurm.

    Its ranks look at who has written a job before they read it. They run in the background of the
    script, see `launch.slurm.script`.
    """

    requeue = "auto"
    """See `cluster.requeue`."""
    outer_python = shlex.quote(sys.executable)
    """What runs on the nodes outside of a container."""

    @classmethod
    def affinity(cls) -> int:
        """Say that Slurm is there. `submit_array` looks for it when a job is submitted."""
        return 2

    @property
    def _submitit_command_str(self) -> str:
        return f"{rank_command(super()._submitit_command_str)} {self.requeue} &"

    def run_as(self, cluster: ClusterConfig) -> None:
        """Use the Python and the container of the cluster, if they are not those of this process.

        Raises:
            LaunchError: See `container.inside`.
        """
        if inside := container.inside(cluster):
            self.python = inside.python
            self.parameters["srun_args"] += inside.srun
        elif cluster.python:
            self.python = self.outer_python = shlex.quote(cluster.python)

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        text: str = super()._make_submission_file_text(command, uid)
        # What the script runs before and after the ranks needs a Python of the nodes, too.
        return text.replace(shlex.quote(sys.executable), self.outer_python)

    def script(self, jobs: int = 1) -> str:
        """The sbatch script of this many jobs, to the letter. The executor stays as it is."""
        shown = copy.copy(self)
        # Submitit sets this parameter in a copy of its own on its way to an array.
        shown.parameters = self.parameters | ({"map_count": jobs} if jobs > 1 else {})
        return shown._make_submission_file_text(self._submitit_command_str, uid="")

    def described(self, jobs: int = 1) -> str:
        """The script, with comments on what the user's shell would add to it or change."""
        text = self.script(jobs)
        notes = environment.variables_of(text).notes
        return "\n".join([text, *(f"# {note}" for note in notes), *([""] if notes else [])])


def rank_executor(
    cluster: ClusterConfig, name: str, logs: Path, *, comment: str | None = None, most: int = 1
) -> SlurmExecutor:
    """The executor of training jobs, whose ranks work together.

    Args:
        cluster: Resources and limits.
        name: The job's name in squeue.
        logs: Folder of scripts, pickles and logs. All nodes must see it.
        comment: What squeue shows as the job's comment.
        most: Jobs of an array that may run at once.
    """
    return _configured(
        cluster,
        name,
        logs,
        setup=script.before_ranks(cluster, logs),
        # Without it the ranks wait in a collective for one that has died.
        srun=("--kill-on-bad-exit=1", *cluster.srun),
        teardown=script.after_ranks(logs),
        comment=comment,
        array_parallelism=most,
    )


def share_executor(
    cluster: ClusterConfig,
    name: str,
    logs: Path,
    *,
    after: str | None = None,
    comment: str | None = None,
    hold: bool = False,
) -> SlurmExecutor:
    """The executor of processes that do not depend on each other, alone or as an array.

    Args:
        cluster: Resources and limits of each.
        name: The job's name in squeue.
        logs: As in `rank_executor`.
        after: Wait until the job of this id has ended, well or not.
        comment: As in `rank_executor`.
        hold: Do not start it before it is released.
    """
    dependency = f"afterany:{after}" if after else None
    return _configured(
        cluster,
        name,
        logs,
        setup=script.environment(cluster, logs),
        srun=cluster.srun,
        teardown=script.after_share(),
        dependency=dependency,
        comment=comment,
        hold=hold,
    )


def _configured(
    cluster: ClusterConfig,
    name: str,
    logs: Path,
    *,
    setup: list[str],
    srun: tuple[str, ...],
    hold: bool = False,
    **parameters: Any,
) -> SlurmExecutor:
    """What both kinds of executor share. `parameters` have submitit's names.

    Raises:
        ConfigError: If a name would break a line of the script, or no shell can read the user's.
    """
    script.refuse_bad_shell(cluster.setup)
    executor = SlurmExecutor(logs, max_num_timeout=MAX_REQUEUES)
    # The settings were looked at when they were read.
    one_line(name, "the job's name")
    one_line(str(executor.folder), "the folder of the job's logs")
    one_line(parameters.get("comment") or "", "the job's comment")
    requeues = cluster.requeue in ("auto", "slurm")
    executor.update_parameters(
        job_name=name,
        nodes=cluster.nodes,
        ntasks_per_node=cluster.tasks_per_node,
        cpus_per_task=cluster.cpus_per_task,
        gpus_per_node=cluster.gpus_per_node or None,
        mem=f"{cluster.memory_gib}G" if cluster.memory_gib else None,
        time=cluster.time_min,
        partition=cluster.partition,
        account=cluster.account,
        constraint=cluster.constraint,
        qos=cluster.qos,
        wckey=None,  # submitit would put its own name there
        exclude=cluster.exclude,
        setup=setup,
        signal_delay_s=cluster.signal_delay_s,
        stderr_to_stdout=True,
        # So that Slurm itself queues a job again whose node has failed.
        additional_parameters={"requeue" if requeues else "no-requeue": True}
        | ({"hold": True} if hold else {}),
        # Since Slurm 22.05 srun forgets the batch job's --cpus-per-task. Where sbatch was told
        # --export=NONE, srun would keep the script's environment from the ranks too.
        srun_args=["--export=ALL", f"--cpus-per-task={cluster.cpus_per_task}", *srun],
        **parameters,
    )
    executor.requeue = cluster.requeue
    executor.parameters = with_site_options(executor.parameters, cluster)
    executor.run_as(cluster)
    return executor


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
