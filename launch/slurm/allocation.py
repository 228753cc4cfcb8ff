"""The Slurm job that this process runs in, as its environment variables describe it."""

from __future__ import annotations

import math
import os

from launch.slurm import squeue
from segresmamba.errors import LaunchError


def job_id() -> str:
    """The id by which submitit knows the Slurm job that this process runs in."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def own_id() -> set[str]:
    """The number of the Slurm job that this process runs in, if it runs in one."""
    return {os.environ["SLURM_JOB_ID"]} if "SLURM_JOB_ID" in os.environ else set()


def is_restart() -> bool:
    """Whether Slurm has queued and started the job that this process runs in again."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def overrides() -> list[str]:
    """What sbatch granted the job that this process runs in, as overrides of the configuration.

    Raises:
        LaunchError: If this process does not run in a Slurm job.
    """
    if "SLURM_JOB_ID" not in os.environ:
        raise LaunchError(
            "this is not the inside of a Slurm job",
            where="SLURM_JOB_ID",
            got="not set",
            remedy="sbatch slurm/train.sh key=value ...",
        )
    granted = {
        "nodes": os.environ["SLURM_JOB_NUM_NODES"],
        "tasks_per_node": os.environ.get("SLURM_NTASKS_PER_NODE"),
        "cpus_per_task": os.environ.get("SLURM_CPUS_PER_TASK"),
        "gpus_per_node": os.environ.get("SLURM_GPUS_ON_NODE", "0"),
        "partition": os.environ.get("SLURM_JOB_PARTITION"),
        "account": os.environ.get("SLURM_JOB_ACCOUNT"),
        "qos": os.environ.get("SLURM_JOB_QOS"),
        # In MiB; a job that goes on after this one asks for no less.
        "memory_gib": math.ceil(int(os.environ.get("SLURM_MEM_PER_NODE", "0")) / 1024),
        "time_min": str(limit_min := squeue.limit_min(os.environ["SLURM_JOB_ID"])),
    }
    # How the GPUs were asked for no longer matters.
    granted |= dict.fromkeys(("gpus", "gpus_per_task"), "null")
    resources = [f"cluster.{key}={value}" for key, value in granted.items() if value]
    # sbatch --signal decides when the ranks are warned. The configuration refuses a delay that is
    # longer than the limit, as the preset's two minutes may be.
    delay = [f"cluster.signal_delay_s={30 * limit_min}"] if limit_min <= 2 else []
    return ["cluster=slurm", *delay, *resources]
