"""Submitit's executor for Slurm, as the jobs of this project need it."""

from __future__ import annotations

import copy
import shlex
import sys
from pathlib import Path
from typing import Any

import submitit

from launch.jobs.start import rank_command
from launch.slurm import container, environment, script
from launch.slurm.options import with_site_options
from segresmamba.config import ClusterConfig
from segresmamba.config.section import one_line

# How often a run may be preempted or reach its time limit. Submitit's default is 3, and a long run
# on a busy cluster needs more.
MAX_REQUEUES = 1000


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
