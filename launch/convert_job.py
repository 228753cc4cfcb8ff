"""A conversion as an array of Slurm jobs, each with a share of the cases, and one that ends it.

    STORE            the store: cases appear one by one, the manifest at the end
    STORE.logs/      scripts, pickles and logs of the jobs

The jobs do not talk to each other: the store shows which cases are done. So any job may be queued
again, and the same command goes on with what is missing.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer
from rich.console import Console

from launch.jobs.rank import resubmission
from launch.jobs.slurm_executor import SlurmExecutor, share_executor
from launch.jobs.submission import submit_array
from launch.slurm import squeue
from launch.slurm.container import with_binds
from segresmamba.cli.conversion import counting
from segresmamba.config import ClusterConfig, load_config, with_own_presets
from segresmamba.data.conversion.convert import convert_share, finish, prepare
from segresmamba.data.conversion.plan import ConversionPlan, ConversionRequest
from segresmamba.errors import ConfigError, LaunchError, UserError, sort_error

# Presets are made for training. Jobs that share cases have no ranks.
_NO_RANKS = ("cluster.nodes=1", "cluster.tasks_per_node=1")


@dataclass(frozen=True)
class ConvertJob:
    """What one job does, the first time and after a requeue."""

    request: ConversionRequest
    shares: int
    share: int | None
    """Which share; None for the last job: what is still missing, and the manifest."""
    workers: int

    def __call__(self) -> str:
        """Convert; return a line that says what was done.

        Raises:
            SystemExit: With code 2 if cases are faulty, 75 if a fault may pass. The error's screen
                is then in the log.
        """
        logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
        logging.getLogger("segresmamba").setLevel(logging.INFO)
        request, workers = self.request.going_on(), self.workers
        try:
            with counting("converting", Console(stderr=True, soft_wrap=True)) as progress:
                if self.share is None:
                    line = str(finish(request, workers=workers, progress=progress))
                else:
                    done = convert_share(
                        request, self.share, self.shares, workers=workers, progress=progress
                    )
                    line = f"share {self.share + 1} of {self.shares}: {done} cases converted"
        except UserError as error:
            sys.stderr.write(error.screen() + "\n")
            sys.exit(sort_error(error).exit_code)
        sys.stderr.write(line + "\n")
        return line

    def checkpoint(self) -> object:
        """Submitit asks for this after a requeue: the same job again, which resumes by itself."""
        return resubmission(self)


def cluster_of(
    overrides: Sequence[str],
    config_dir: Path | None = None,
    *,
    command: str = "convert",
    gpus: int = 0,
) -> ClusterConfig:
    """The cluster that these overrides describe, with one process per job.

    Args:
        overrides: Settings of the cluster.
        config_dir: See `with_own_presets`.
        command: Whose jobs share the cases; errors name it.
        gpus: GPUs of each job, unless the overrides have another number.

    Raises:
        ConfigError: If they are wrong, or describe anything else.
    """
    ranks = ("cluster.nodes", "cluster.tasks_per_node")
    if others := [o for o in overrides if not o.startswith("cluster") or o.startswith(ranks)]:
        raise ConfigError(
            f"`python -m launch {command}` has no such setting",
            where=others[0].split("=", maxsplit=1)[0],
            got=others[0],
            remedy=f"give options (python -m launch {command} --help) and cluster.* settings, as "
            "in cluster=slurm cluster.time_min=60; --tasks says how many jobs share the cases",
        )
    defaults = (*_NO_RANKS, f"cluster.gpus_per_node={gpus}")
    return load_config(with_own_presets([*defaults, *overrides], config_dir)).cluster


def run(request: ConversionRequest, cluster: ClusterConfig, tasks: int) -> None:
    """Convert here in `tasks` processes, or queue as many jobs on Slurm and one that ends it.

    Raises:
        UserError: If the source, the store or the cluster cannot be used as asked.
    """
    if cluster.name != "slurm":
        with counting("converting", Console(soft_wrap=True)) as progress:
            typer.echo(str(finish(request, workers=tasks, progress=progress)))
        return
    name, logs = _names(request)
    squeue.refuse_queued("conversion", request.out, name, f"{name}-end")
    # The jobs may start in another folder.
    splits = request.splits.absolute() if isinstance(request.splits, Path) else request.splits
    request = replace(
        request, source=request.source.absolute(), out=request.out.absolute(), splits=splits
    )
    cases = prepare(request)
    if not cases:
        typer.echo(str(finish(request.going_on())))
        return
    try:
        shares = submit_array(*_array(request, cluster, min(tasks, cases)))
    except LaunchError:
        ConversionPlan.from_request(request.going_on()).folder().remove_if_without_cases()
        raise
    job_id = shares[0].job_id.split("_")[0]
    try:
        (end,) = submit_array(*_end(request, cluster, after=job_id))
    except LaunchError:
        squeue.cancel(job_id)
        raise
    typer.echo(f"{cases} cases in {len(shares)} jobs: {job_id}, logs {logs}")
    typer.echo(f"then job {end.job_id} ends the store, log {end.paths.stdout}")
    typer.echo(f"stop: scancel {job_id} {end.job_id}; the same command goes on")


def describe(request: ConversionRequest, cluster: ClusterConfig, tasks: int) -> str:
    """What `run` would do, as text. Changes nothing.

    For Slurm these are the two scripts, to the letter except for the array's job id.
    """
    if cluster.name != "slurm":
        return f"cluster={cluster.name}: {tasks} process(es) here, {request.out}\n"
    array, _ = _array(request, cluster, tasks)
    end, _ = _end(request, cluster, after="ARRAY")
    return f"{array.script(tasks)}\n{end.described()}"


def _array(
    request: ConversionRequest, cluster: ClusterConfig, shares: int
) -> tuple[SlurmExecutor, list[ConvertJob]]:
    name, logs = _names(request)
    jobs = [ConvertJob(request, shares, share, cluster.cpus_per_task) for share in range(shares)]
    return share_executor(_seeing(request, cluster), name, logs), jobs


def _end(
    request: ConversionRequest, cluster: ClusterConfig, *, after: str
) -> tuple[SlurmExecutor, list[ConvertJob]]:
    name, logs = _names(request)
    job = ConvertJob(request, 1, None, cluster.cpus_per_task)
    return share_executor(_seeing(request, cluster), f"{name}-end", logs, after=after), [job]


def _seeing(request: ConversionRequest, cluster: ClusterConfig) -> ClusterConfig:
    return with_binds(cluster, request.source, Path(os.path.abspath(request.out)).parent)


def _names(request: ConversionRequest) -> tuple[str, Path]:
    out = Path(os.path.abspath(request.out))
    return f"convert-{out.name}", out.with_name(f"{out.name}.logs")
