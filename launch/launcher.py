"""Scripts of users name this module."""

from typing import NoReturn

from launch.jobs.backends import backend_for
from launch.jobs.slurm import Slurm
from launch.jobs.train_job import RankJob


def start(job: RankJob, *, watch: bool = False) -> int:
    """See `launch.jobs.backends.Backend.start`."""
    return backend_for(job.resolved_config()).start(job, follow=watch)


def describe(job: RankJob) -> str:
    """See `launch.jobs.backends.Backend.describe`."""
    return backend_for(job.resolved_config()).describe(job)


def run_in_allocation(job: RankJob) -> NoReturn:
    """See `launch.jobs.slurm.Slurm.run_in_allocation`."""
    Slurm().run_in_allocation(job)
