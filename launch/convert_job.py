"""A conversion as an array of Slurm jobs, each with a share of the cases, and one that ends it.

    STORE            the store: cases appear one by one, the manifest at the end
    STORE.logs/      scripts, pickles and logs of the jobs

No job knows of the others: which cases are done is seen in the store. So any of them may be queued
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

from launch.jobs import submission
from launch.slurm import squeue
from segresmamba.cli.conversion import counting
from segresmamba.config import ClusterConfig, load_config
from segresmamba.data.conversion.convert import convert_share, finish, prepare
from segresmamba.data.conversion.plan import ConversionPlan, ConversionRequest
from segresmamba.errors import ConfigError, LaunchError, UserError

# Of a preset that is made for training, what a conversion has no use for.
_NO_RANKS = ("cluster.nodes=1", "cluster.tasks_per_node=1", "cluster.gpus_per_node=0")


@dataclass(frozen=True)
class ConvertJob:
    """What one job does, the first time and after a requeue."""

    request: ConversionRequest
    shares: int
    share: int | None
    """Which of them; None is the end: what is still missing, and the manifest."""
    workers: int

    def __call__(self) -> str:
        """Convert; return a line about it.

        Raises:
            SystemExit: With code 2 where something is wrong with cases, whose screen is in the log.
        """
        logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
        logging.getLogger("segresmamba").setLevel(logging.INFO)
        request, workers = self.request.going_on(), self.workers
        try:
            with counting("converting", Console(stderr=True, soft_wrap=True)) as progress:
                if self.share is None:
                    said = str(finish(request, workers=workers, progress=progress))
                else:
                    done = convert_share(
                        request, self.share, self.shares, workers=workers, progress=progress
                    )
                    said = f"share {self.share + 1} of {self.shares}: {done} cases converted"
        except UserError as error:
            sys.stderr.write(error.screen() + "\n")
            sys.exit(2)
        sys.stderr.write(said + "\n")
        return said

    def checkpoint(self) -> object:
        """Submitit asks for this after a requeue: the same job again, which resumes by itself."""
        return submission.resubmission(self)


def cluster_of(words: Sequence[str]) -> ClusterConfig:
    """The cluster that `key=value` words describe, one process to a job.

    Raises:
        ConfigError: If they are wrong, or describe anything else.
    """
    ranks = ("cluster.nodes", "cluster.tasks_per_node")
    if others := [w for w in words if not w.startswith("cluster") or w.startswith(ranks)]:
        raise ConfigError(
            "a conversion has no such setting",
            where=others[0].split("=", maxsplit=1)[0],
            got=others[0],
            remedy="give options (python -m launch convert --help) and cluster.* words, as in "
            "cluster=slurm cluster.time_min=60; --tasks says how many jobs share the cases",
        )
    return load_config([*_NO_RANKS, *words]).cluster


def run(request: ConversionRequest, cluster: ClusterConfig, tasks: int) -> None:
    """Convert here in `tasks` processes, or queue so many jobs on Slurm and one that ends it.

    Raises:
        UserError: If the source, the store or the cluster cannot be used as asked.
    """
    if cluster.name != "slurm":
        with counting("converting", Console(soft_wrap=True)) as progress:
            typer.echo(str(finish(request, workers=tasks, progress=progress)))
        return
    name, logs = _names(request)
    if queued := squeue.named(name) + squeue.named(f"{name}-end"):
        raise LaunchError(
            "this conversion is in the queue already",
            where=request.out,
            got=", ".join(queued),
            remedy=f"wait for it, or end it: scancel {' '.join(queued)}; then the same command "
            "goes on",
        )
    request = _everywhere(request)
    cases = prepare(request)
    if not cases:
        typer.echo(str(finish(request.going_on())))
        return
    try:
        shares = submission.submit_array(*_array(request, cluster, min(tasks, cases)))
    except LaunchError:
        ConversionPlan.from_request(request.going_on()).folder().remove_if_without_cases()
        raise
    job_id = shares[0].job_id.split("_")[0]
    try:
        end = submission.submit(*_end(request, cluster, after=job_id))
    except LaunchError:
        squeue.cancel(job_id)
        raise
    typer.echo(f"{cases} cases in {len(shares)} jobs: {job_id}, logs {logs}")
    typer.echo(f"then job {end.job_id} ends the store, log {end.paths.stdout}")
    typer.echo(f"stop: scancel {job_id} {end.job_id}; the same command goes on")


def describe(request: ConversionRequest, cluster: ClusterConfig, tasks: int) -> str:
    """What `run` would do: for Slurm the two scripts, to the letter but for the array's number."""
    if cluster.name != "slurm":
        return f"cluster={cluster.name}: {tasks} process(es) here, {request.out}\n"
    array, _ = _array(request, cluster, tasks)
    end, _ = _end(request, cluster, after="ARRAY")
    return f"{array.script(tasks)}\n{end.script()}"


def _array(
    request: ConversionRequest, cluster: ClusterConfig, shares: int
) -> tuple[submission.SlurmExecutor, list[ConvertJob]]:
    name, logs = _names(request)
    jobs = [ConvertJob(request, shares, share, cluster.cpus_per_task) for share in range(shares)]
    return submission.share_executor(cluster, name, logs), jobs


def _end(
    request: ConversionRequest, cluster: ClusterConfig, *, after: str
) -> tuple[submission.SlurmExecutor, ConvertJob]:
    name, logs = _names(request)
    job = ConvertJob(request, 1, None, cluster.cpus_per_task)
    return submission.share_executor(cluster, f"{name}-end", logs, after=after), job


def _names(request: ConversionRequest) -> tuple[str, Path]:
    out = Path(os.path.abspath(request.out))
    return f"convert-{out.name}", out.with_name(f"{out.name}.logs")


def _everywhere(request: ConversionRequest) -> ConversionRequest:
    """The same with paths that hold in every folder."""
    splits = request.splits.absolute() if isinstance(request.splits, Path) else request.splits
    return replace(
        request, source=request.source.absolute(), out=request.out.absolute(), splits=splits
    )
