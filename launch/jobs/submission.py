"""Submitit, which nothing else here imports: executors, a rank's place in its job, the requeue.

Whatever the cluster, submitit starts `python -m submitit.core._submit LOGS` once per rank; it
unpickles the job, calls it and writes the result next to the logs:

    <run folder>/logs/<job>_submission.sh    the sbatch script (Slurm)
                      <job>_submitted.pkl    the job
                      <job>_<rank>_log.out   what the rank printed, standard error included
                      <job>_<rank>_result.pkl
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, JobPaths, temporary_save_path

from launch.jobs.local_controller import LocalPlan
from launch.ports import free_port
from launch.slurm import allocation, script, squeue
from segresmamba.config import ClusterConfig
from segresmamba.errors import LaunchError

# A run may be preempted or reach its time limit this often.
MAX_REQUEUES = 1000
# An array's pickles are named one by one, on a file system that may be slow.
PICKLE_PATIENCE_S = 60.0
# A job on this machine without a limit of its own gets a year.
UNLIMITED_MIN = 365 * 24 * 60
# The signal that submitit takes for preemption and time limit; NCCL uses SIGUSR1.
REQUEUE_SIGNAL = signal.SIGUSR2

SINFO = "`sinfo -o '%P %l %D %G %f'` lists partitions, limits, nodes, GPUs, features"

Work = Callable[[], Any]
Job = submitit.Job[Any]


class SlurmExecutor(submitit.SlurmExecutor):
    """Submitit's, which writes its script also where there is no Slurm."""

    @classmethod
    def affinity(cls) -> int:
        """Say that Slurm is there; it is looked for when a job is submitted."""
        return 2

    def script(self, jobs: int = 1) -> str:
        """The sbatch script that a submission of so much work runs, to the letter."""
        if jobs > 1:
            self.parameters["map_count"] = jobs  # as submitit does on its way to an array
        return self._make_submission_file_text(self._submitit_command_str, uid="")


class LocalExecutor(submitit.LocalExecutor):
    """Submitit's with this project's controller, which ends all ranks when one has failed."""

    controller: subprocess.Popen[bytes]
    """The process that owns the ranks, once a job is submitted."""

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


def slurm_executor(
    cluster: ClusterConfig, name: str, logs: Path, *, comment: str | None = None, most: int = 1
) -> SlurmExecutor:
    """The executor that queues a job as `cluster` describes it.

    Args:
        cluster: Resources and limits.
        name: The job's name in the squeue.
        logs: Folder of scripts, pickles and logs; all nodes must see it.
        comment: What squeue shows as the job's comment.
        most: Jobs of an array that may run at once.
    """
    return _slurm_executor(
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
    cluster: ClusterConfig, name: str, logs: Path, *, after: str | None = None
) -> SlurmExecutor:
    """The executor of processes that need nothing of each other, alone or as an array.

    Args:
        cluster: Resources and limits of each.
        name: The job's name in the squeue.
        logs: As in `slurm_executor`.
        after: Wait until this job has ended, well or not.
    """
    dependency = f"afterany:{after}" if after else None
    setup = script.environment(cluster)
    return _slurm_executor(
        cluster, name, logs, setup=setup, srun=cluster.srun, dependency=dependency
    )


def _slurm_executor(
    cluster: ClusterConfig,
    name: str,
    logs: Path,
    *,
    setup: list[str],
    srun: tuple[str, ...],
    **parameters: Any,
) -> SlurmExecutor:
    """With submitit's names for what only one kind of job has."""
    executor = SlurmExecutor(logs, max_num_timeout=MAX_REQUEUES)
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
        wckey=None,
        exclude=cluster.exclude,
        setup=setup or None,
        signal_delay_s=cluster.signal_delay_s,
        stderr_to_stdout=True,
        additional_parameters={"requeue": True},
        # Since Slurm 22.05 srun forgets the batch job's --cpus-per-task.
        srun_args=[f"--cpus-per-task={cluster.cpus_per_task}", *srun],
        **parameters,
    )
    return executor


def local_executor(cluster: ClusterConfig, logs: Path) -> LocalExecutor:
    """The executor that runs the ranks on this machine."""
    executor = LocalExecutor(logs, max_num_timeout=MAX_REQUEUES)
    executor.update_parameters(
        tasks_per_node=cluster.tasks_per_node,
        timeout_min=cluster.time_min or UNLIMITED_MIN,
        signal_delay_s=cluster.signal_delay_s,
    )
    return executor


def run_in_process(work: Work, logs: Path) -> Any:
    """Call `work` as the only rank, in this process; an error opens the debugger."""
    with submitit.helpers.environment_variables(SUBMITIT_FOLDER=logs):
        job = submitit.DebugExecutor(logs).submit(work)
        return job.result()


def make_logs(logs: Path) -> None:
    """Make the folder of a job's logs.

    Raises:
        LaunchError: If that is not possible.
    """
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(
            "the run folder cannot be written",
            where=logs,
            got=error.strerror,
            remedy="choose a writable folder, as in run.root=FOLDER",
        ) from error


def submit(executor: SlurmExecutor, work: Work) -> Job:
    """Queue `work`, see `submit_array`."""
    (job,) = submit_array(executor, [work])
    return job


def submit_array(
    executor: SlurmExecutor,
    works: Sequence[Work],
    note: Callable[[list[Job]], None] = lambda _jobs: None,
) -> list[Job]:
    """Queue `works` as one array, a single one as a plain job.

    Args:
        executor: Of all of them.
        works: What the jobs run.
        note: Is given the jobs as soon as Slurm has them.

    Raises:
        LaunchError: If there is no sbatch, or it refuses the jobs, of which then nothing is left.
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
    try:
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # the error says the same
            jobs = [executor.submit(work) for work in works]
    except FailedJobError as error:
        _sweep_up(logs, before)
        raise LaunchError(
            "Slurm refused the job",
            where="cluster.*",
            got=str(error).strip() or "no message",
            remedy=_remedy(str(error), len(works)),
        ) from error
    note(jobs)
    if reason := squeue.hopeless(jobs[0].job_id):
        squeue.cancel(jobs[0].job_id.partition("_")[0])
        _sweep_up(logs, before)
        raise LaunchError(
            "the job would have waited for ever, so it was cancelled",
            where="cluster.*",
            got=reason,
            remedy=f"{SINFO}; --dry-run shows the script",
        )
    return jobs


def _remedy(refusal: str, jobs: int) -> str:
    if "Invalid job array specification" in refusal:
        return (
            f"an array of this cluster takes fewer than {jobs} jobs (`scontrol show config | grep "
            "MaxArraySize`): split the sweep into several, as by seed, each with a --name"
        )
    return f"{SINFO}; --dry-run shows the script"


def _sweep_up(logs: Path, before: set[Path]) -> None:
    for path in set(logs.iterdir()) - before:
        path.unlink()
    with contextlib.suppress(OSError):  # not empty: an earlier job's
        logs.rmdir()
        logs.parent.rmdir()


def run_in_allocation(executor: SlurmExecutor, work: Work) -> NoReturn:
    """Become the script that `submit` would have queued, inside the job that sbatch made.

    A requeued job comes here again and keeps the pickle that its last run left. From here on the
    job's output goes where that of a submitted one goes.
    """
    paths = JobPaths(executor.folder, job_id=allocation.job_id())
    make_logs(paths.folder)
    if not paths.submitted_pickle.exists():
        delayed = DelayedSubmission(work)
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
    pickles = sorted(logs.glob("*_submitted.pkl"))
    return [path.name.removesuffix("_submitted.pkl") for path in pickles]


def load_work(logs: Path, job_id: str) -> Any:
    """The job that was submitted under this id, as it was pickled.

    Submitit names the pickle after the job, and so after the submission: it may be a moment late.
    """
    pickle = JobPaths(logs, job_id=job_id).submitted_pickle
    deadline = time.monotonic() + PICKLE_PATIENCE_S
    while not pickle.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return DelayedSubmission.load(pickle).function


def batch_log(logs: Path) -> Path:
    """The log of this job's script and first rank."""
    return JobPaths(logs, job_id=allocation.job_id()).stdout


def place() -> submitit.JobEnvironment:
    """Where this process stands in the job that submitit started it for."""
    return submitit.JobEnvironment()


def rank_environment(place: submitit.JobEnvironment) -> dict[str, str]:
    """The variables that torch.distributed reads.

    CUDA_VISIBLE_DEVICES is left alone: LOCAL_RANK picks the device among those of the node.
    """
    # Whoever starts the ranks of a job has chosen a port for all of them.
    port = os.environ.get("MASTER_PORT") or str(free_port(place.job_id))
    return {
        "RANK": str(place.global_rank),
        "WORLD_SIZE": str(place.num_tasks),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.num_tasks // place.num_nodes),
        "MASTER_ADDR": "127.0.0.1" if place.num_nodes == 1 else place.hostnames[0],
        "MASTER_PORT": port,
    }


def resubmission(work: Work) -> DelayedSubmission:
    """What a requeued job runs: submitit asks `work.checkpoint()` for it."""
    return DelayedSubmission(work)


def requeue() -> NoReturn:
    """End this rank and queue the job again; to be called by every rank once all have saved.

    Submitit's handler does it, on rank 0 only: it writes the job's pickle anew and requeues.
    """
    signal.raise_signal(REQUEUE_SIGNAL)
    sys.exit(0)


def goes_back_to_queue(received: set[int]) -> bool:
    """Whether a job that was stopped by these signals is to be requeued.

    SIGUSR2 announces preemption or the time limit. SIGTERM may too, on Slurm; there and here it
    also comes from somebody who wants the job to end, when Slurm no longer calls it running.
    """
    if REQUEUE_SIGNAL in received:
        return True
    return place().cluster == "slurm" and squeue.is_running(place().raw_job_id)
