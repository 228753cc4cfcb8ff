"""A prediction on the GPUs of this machine, or as an array of Slurm jobs, each with a share.

    OUTPUT           label maps, which appear one by one, and predict.json
    OUTPUT.logs/     scripts, pickles and logs of the jobs

The jobs do not talk to each other: the output folder shows which cases are done. So any job may be
queued again, and the same command goes on with what is missing.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import typer
from rich.console import Console

from launch.jobs.rank import resubmission
from launch.jobs.slurm_executor import SlurmExecutor, share_executor
from launch.jobs.submission import submit_array
from launch.slurm import squeue
from launch.slurm.container import with_binds
from segresmamba.cli.predict import finish, showing_progress
from segresmamba.config import ClusterConfig
from segresmamba.errors import OUR_CODE, LaunchError, UserError, sort_error
from segresmamba.inference.predict import (
    Prediction,
    PredictRequest,
    failures_text,
    predict_cases,
)
from segresmamba.storage.processes import outcomes


@dataclass(frozen=True)
class PredictJob:
    """What one job does, the first time and after a requeue."""

    request: PredictRequest

    def __call__(self) -> str:
        """Segment a share of the cases; return a line that says what was done.

        Raises:
            SystemExit: With code 1 if cases failed, 2 or 75 if nothing can be done. The reason is
                then in the log.
        """
        logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
        logging.getLogger("segresmamba").setLevel(logging.INFO)
        try:
            with showing_progress(Console(stderr=True, soft_wrap=True)) as observer:
                found = predict_cases(self.request, observer)
        except UserError as error:
            sys.stderr.write(error.screen() + "\n")
            sys.exit(sort_error(error).exit_code)
        number, shares = self.request.share
        line = (
            f"share {number + 1} of {shares}: {len(found.written)} cases segmented, "
            f"{len(found.skipped)} were done"
        )
        sys.stderr.write(line + "\n")
        if found.failed:
            sys.stderr.write(failures_text(found.failed) + "\n")
            sys.exit(OUR_CODE)
        return line

    def checkpoint(self) -> object:
        """Submitit asks for this after a requeue: the same job again, which resumes by itself."""
        return resubmission(self)


def run(request: PredictRequest, cluster: ClusterConfig, tasks: int | None) -> None:
    """Segment here, or queue an array on Slurm.

    Args:
        request: What is to be segmented.
        cluster: Where.
        tasks: Jobs of the array (by default 8), or processes here (by default one for each GPU).

    Raises:
        UserError: If models, input, output or cluster cannot be used as asked.
        typer.Exit: With code 1 if cases failed here.
    """
    cases = len(request.opened()[1])
    if cluster.name == "slurm":
        _queue(request, cluster, min(tasks or 8, cases), cases)
        return
    devices = _devices(request, tasks)[:cases]
    if len(devices) == 1:
        with showing_progress(Console(stderr=True, soft_wrap=True)) as observer:
            done = [predict_cases(request, observer)]
    else:
        typer.echo(f"{cases} cases in {len(devices)} processes: {', '.join(devices)}", err=True)
        done = _beside_each_other(request, devices)
    written, skipped = (sum(len(one) for one in kind) for kind in zip(
        *((one.written, one.skipped) for one in done), strict=True
    ))  # fmt: skip
    typer.echo(f"{written} cases segmented, {skipped} were done: {request.out}")
    finish({name: problem for one in done for name, problem in one.failed.items()})


def describe(request: PredictRequest, cluster: ClusterConfig, tasks: int | None) -> str:
    """What `run` would do, as text. Changes nothing; for Slurm it is the script to the letter.

    Raises:
        UserError: As `run`.
    """
    cases = len(request.opened()[1])
    if cluster.name != "slurm":
        devices = ", ".join(_devices(request, tasks)[:cases])
        return f"cluster={cluster.name}: here, on {devices}, {request.out}\n"
    return _executor(request, cluster).described(min(tasks or 8, cases))


def _devices(request: PredictRequest, tasks: int | None) -> list[str]:
    """The device of each process: all GPUs, or the one that was asked for."""
    import torch

    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if request.options.device not in ("auto", "cuda") or not gpus:
        return [request.options.device] * (tasks or 1)
    return [gpus[number % len(gpus)] for number in range(tasks or len(gpus))]


def _beside_each_other(request: PredictRequest, devices: list[str]) -> list[Prediction]:
    shares = [
        replace(
            request,
            options=replace(request.options, device=device),
            share=(number, len(devices)),
        )
        for number, device in enumerate(devices)
    ]
    killed = LaunchError(
        "a process of the prediction was killed",
        where=request.out,
        got="an end without a message, as when memory runs out",
        remedy="give fewer --tasks; the same command goes on with what is missing",
    )
    calls = {str(number): partial(predict_cases, share) for number, share in enumerate(shares)}
    with _divided_cores(len(shares)):
        done = dict(outcomes(calls, len(shares), killed))
    return [done[number] for number in calls]


@contextmanager
def _divided_cores(processes: int) -> Iterator[None]:
    """Let processes that begin in this block share the cores, unless the user has said how."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // processes))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def _queue(request: PredictRequest, cluster: ClusterConfig, shares: int, cases: int) -> None:
    executor = _executor(request, cluster)
    name = _name(request)
    squeue.refuse_queued("prediction", request.out, name)
    # The jobs may start in another folder.
    there = replace(
        request,
        models=tuple(path.absolute() for path in request.models),
        sources=tuple(one if "://" in one else os.path.abspath(one) for one in request.sources),
        out=request.out.absolute(),
    )
    jobs = [PredictJob(replace(there, share=(number, shares))) for number in range(shares)]
    submitted = submit_array(executor, jobs)
    job_id = submitted[0].job_id.split("_")[0]
    typer.echo(f"{cases} cases in {shares} jobs: {job_id}, logs {executor.folder}")
    typer.echo(f"stop: scancel {job_id}; the same command goes on")


def _executor(request: PredictRequest, cluster: ClusterConfig) -> SlurmExecutor:
    out = Path(os.path.abspath(request.out))
    cluster = with_binds(cluster, *request.models, *request.sources, out.parent)
    return share_executor(cluster, _name(request), out.with_name(f"{out.name}.logs"))


def _name(request: PredictRequest) -> str:
    return f"predict-{Path(os.path.abspath(request.out)).name}"
