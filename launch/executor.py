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
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, JobPaths, temporary_save_path

from launch.controller import LocalPlan
from segresmamba.config import ClusterConfig
from segresmamba.errors import LaunchError

# A run may be preempted or reach its time limit this often.
MAX_REQUEUES = 1000
# A job on this machine without a limit of its own gets a year.
UNLIMITED_MIN = 365 * 24 * 60
# The signal that submitit takes for preemption and time limit; NCCL uses SIGUSR1.
REQUEUE_SIGNAL = signal.SIGUSR2

Work = Callable[[], Any]
Job = submitit.Job[Any]


class SlurmExecutor(submitit.SlurmExecutor):
    """Submitit's, which writes its script also where there is no Slurm."""

    @classmethod
    def affinity(cls) -> int:
        """Say that Slurm is there; it is looked for when a job is submitted."""
        return 2

    def script(self) -> str:
        """The sbatch script that a submission runs, to the letter."""
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


def slurm_executor(cluster: ClusterConfig, name: str, logs: Path) -> SlurmExecutor:
    """The executor that queues a job as `cluster` describes it.

    Args:
        cluster: Resources and limits.
        name: The job's name in the queue.
        logs: Folder of scripts, pickles and logs; all nodes must see it.
    """
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
        setup=list(cluster.setup) or None,
        signal_delay_s=cluster.signal_delay_s,
        stderr_to_stdout=True,
        additional_parameters={"requeue": True},
        # Since Slurm 22.05 srun forgets the batch job's --cpus-per-task; and without the other
        # flag the ranks wait in a collective for one that has died.
        srun_args=[f"--cpus-per-task={cluster.cpus_per_task}", "--kill-on-bad-exit=1"],
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
    """Queue `work`.

    Raises:
        LaunchError: If there is no sbatch, or it refuses the job, of which then nothing is left.
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
        with contextlib.redirect_stderr(io.StringIO()):  # the error below says the same
            return executor.submit(work)
    except FailedJobError as error:
        for path in set(logs.iterdir()) - before:
            path.unlink()
        with contextlib.suppress(OSError):  # not empty: an earlier job's
            logs.rmdir()
            logs.parent.rmdir()
        raise LaunchError(
            "Slurm refused the job",
            where="cluster.*",
            got=str(error).strip() or "no message",
            remedy="`sinfo -o '%P %l %D %G %f'` lists partitions, limits, nodes, GPUs, features; "
            "--dry-run shows the script",
        ) from error


def allocation_overrides() -> list[str]:
    """What sbatch granted the job that this process runs in, as words of the configuration.

    Raises:
        LaunchError: If this is no Slurm job.
    """
    if "SLURM_JOB_ID" not in os.environ:
        raise LaunchError(
            "this is not the inside of a Slurm job",
            where="SLURM_JOB_ID",
            got="not set",
            remedy="sbatch slurm/train.sh key=value ...",
        )
    granted = {
        "nodes": "SLURM_JOB_NUM_NODES",
        "tasks_per_node": "SLURM_NTASKS_PER_NODE",
        "cpus_per_task": "SLURM_CPUS_PER_TASK",
        "gpus_per_node": "SLURM_GPUS_ON_NODE",
    }
    words = [f"cluster.{k}={os.environ[v]}" for k, v in granted.items() if v in os.environ]
    return ["cluster=slurm", *words]


def run_in_allocation(executor: SlurmExecutor, work: Work) -> NoReturn:
    """Become the script that `submit` would have queued, inside the job that sbatch made.

    A requeued job comes here again and keeps the pickle that its last run left.
    """
    paths = JobPaths(executor.folder, job_id=os.environ["SLURM_JOB_ID"])
    paths.folder.mkdir(parents=True, exist_ok=True)
    if not paths.submitted_pickle.exists():
        delayed = DelayedSubmission(work)
        delayed.set_timeout(executor.parameters["time"], MAX_REQUEUES)
        with temporary_save_path(paths.submitted_pickle) as temporary:
            delayed.dump(temporary)
    paths.submission_file.write_text(executor.script())
    os.execvp("bash", ["bash", str(paths.submission_file)])


def place() -> submitit.JobEnvironment:
    """Where this process stands in the job that submitit started it for."""
    return submitit.JobEnvironment()


def rank_environment(place: submitit.JobEnvironment) -> dict[str, str]:
    """The variables that torch.distributed reads.

    CUDA_VISIBLE_DEVICES is left alone: LOCAL_RANK picks the device among those of the node.
    """
    # Below the ports that Linux gives to outgoing connections; the same for all ranks of a job,
    # another for the next job on the node.
    port = 20000 + zlib.crc32(place.job_id.encode()) % 12000
    return {
        "RANK": str(place.global_rank),
        "WORLD_SIZE": str(place.num_tasks),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.num_tasks // place.num_nodes),
        "MASTER_ADDR": "127.0.0.1" if place.num_nodes == 1 else place.hostnames[0],
        "MASTER_PORT": str(port),
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
    if place().cluster != "slurm":
        return False
    show = ["scontrol", "show", "job", place().raw_job_id]
    return "JobState=RUNNING" in subprocess.check_output(show, text=True)
