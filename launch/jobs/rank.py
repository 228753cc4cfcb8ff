"""What a process inside a job needs of submitit: its place, its job's files, the way to a requeue.

Submitit starts `python -m launch.jobs.start LOGS` once per rank. It unpickles the job, calls it
and writes the result next to the logs:

    <run folder>/logs/<job>_submission.sh    the sbatch script (Slurm)
                      <job>_submitted.pkl    the job
                      <job>_<rank>_log.out   what the rank printed, standard error included
                      <job>_<rank>_result.pkl
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import submitit
from submitit.core.utils import DelayedSubmission, JobPaths

from launch.jobs import succession
from launch.ports import free_port
from launch.slurm import allocation, squeue
from segresmamba.errors import LaunchError

# Submitit renames the pickles of an array one after the other once the array is queued, on a file
# system that may be slow. So a job can start before its pickle has its name.
PICKLE_PATIENCE_S = 60.0
# The signal that submitit takes for preemption and time limit. SIGUSR1 belongs to NCCL.
REQUEUE_SIGNAL = signal.SIGUSR2


def place() -> submitit.JobEnvironment:
    """Where this process stands in the job that submitit started it for."""
    return submitit.JobEnvironment()


def rank_environment(place: submitit.JobEnvironment) -> dict[str, str]:
    """The variables that torch.distributed reads.

    CUDA_VISIBLE_DEVICES is left alone: LOCAL_RANK picks the device among those of the node.
    """
    # The preflight or the local controller has chosen one port for all ranks, if there is one.
    port = os.environ.get("MASTER_PORT") or str(free_port(place.job_id))
    return {
        "RANK": str(place.global_rank),
        "WORLD_SIZE": str(place.num_tasks),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.num_tasks // place.num_nodes),
        # One node needs no name service, and a laptop may have none.
        "MASTER_ADDR": "127.0.0.1" if place.num_nodes == 1 else place.hostnames[0],
        "MASTER_PORT": port,
    }


def load_job(logs: Path, job_id: str) -> Any:
    """The job that was submitted under this id, as it was pickled.

    Raises:
        LaunchError: If the pickle belongs to another user.
    """
    return DelayedSubmission.load(submitted_pickle(logs, job_id)).function


def submitted_pickle(logs: Path, job_id: str) -> Path:
    """The pickle of the job that was submitted under this id, once it is there.

    Raises:
        LaunchError: If it belongs to another user.
    """
    pickle = JobPaths(logs, job_id=job_id).submitted_pickle
    deadline = time.monotonic() + PICKLE_PATIENCE_S
    while not pickle.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    refuse_foreign(pickle)
    return pickle


def refuse_foreign(pickle: Path) -> None:
    """Refuse a pickle that another user has written: reading it runs what it says.

    Raises:
        LaunchError: If neither we nor root own it, or the link that leads to it.
        OSError: If there is none.
    """
    for found in (pickle.lstat(), pickle.stat()):
        if found.st_uid not in (os.geteuid(), 0):
            raise LaunchError(
                "the pickle of a job belongs to another user, and reading it would run their code",
                where=pickle,
                got=f"user {found.st_uid}; this job runs as user {os.geteuid()}",
                remedy="see who may write to this folder (ls -l), delete the file, and submit the "
                "run again as yourself; to go on with another user's run, copy its folder first",
            )


def batch_log(logs: Path) -> Path:
    """The log of this job's batch script and first rank."""
    return succession.log_of(logs, allocation.job_id())


def resubmission(job: Callable[[], Any]) -> DelayedSubmission:
    """What a requeued job runs. Submitit asks `job.checkpoint()` for it."""
    return DelayedSubmission(job)


def requeue(saved: str) -> NoReturn:
    """End this rank so that the job goes on later. Every rank calls this, once all have saved.

    Args:
        saved: What they have saved, as the beginning of a line of the log.
    """
    here = place()
    if here.cluster == "slurm" and here.global_rank == 0:
        succession.leave(here.paths.folder, here.job_id, how_to_go_on(), saved)
    if here.cluster != "slurm":
        # Submitit's handler writes the pickle anew and asks the local controller, on rank 0 only.
        signal.raise_signal(REQUEUE_SIGNAL)
    sys.exit(0)


def how_to_go_on() -> str:
    """`cluster.requeue` of this process's job, from its command line."""
    return sys.argv[2] if len(sys.argv) > 2 else "auto"


def goes_back_to_queue(received: set[int]) -> bool:
    """Whether a job that these signals have stopped is to be requeued.

    SIGUSR2 announces preemption or the time limit. SIGTERM is ambiguous: on Slurm it may announce
    preemption too, but it also comes from a user who wants the job to end. Slurm still calls a
    preempted job running, and a cancelled job completing.

    On Slurm only the first rank requeues, so it alone asks: all ranks of a job get SIGTERM in the
    same second, and slurmctld would have to answer each of them.

    It asks for the job by its number in its array. The last job of an array to start has the
    number of the whole array, and would be told that others still run.
    """
    here = place()
    asks = here.cluster == "slurm" and here.global_rank == 0
    if REQUEUE_SIGNAL in received:
        # The user may have cancelled it since the warning, and Slurm would queue even that again.
        return not (asks and squeue.is_cancelled(here.job_id))
    return asks and squeue.is_running(here.job_id)
