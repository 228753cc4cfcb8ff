"""Before the ranks of a Slurm job start: are its nodes what the run needs?

The batch script runs this on the first node. It looks at every node with one srun (`probe`) and
prints the port at which the ranks are to meet. It refuses the job within seconds where training
would fail after minutes or an hour.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from launch.jobs import succession
from launch.jobs.memory_check import require_fit
from launch.jobs.rank import load_job
from launch.ports import free_port
from launch.slurm import allocation, probe
from launch.slurm.probe import NodeReport
from segresmamba.build_tools import INSTALL_BUILD_TOOLS, missing_build_tool
from segresmamba.config import Config
from segresmamba.errors import LaunchError, PassingError, sort_error

# Failures of ranks are put in order by the nodes' clocks, see `launch.failures`.
CLOCK_TOLERANCE_S = 10.0
# Measured: a rank takes 0.6 GiB before it has a network, a reader process 0.2 GiB.
RANK_GIB, READER_GIB = 0.6, 0.2
_SAME_PYTHON = (
    f"see that {sys.executable} is the same on all nodes: install on a shared file system"
)
# What srun says when Slurm ends the step, as for a preemption, or signals it.
_SIGNALLED = re.compile(r"CANCELLED AT|tasks? \S+ (Terminated|User defined signal)")
# Variables of the batch job that would give srun other numbers of tasks than one per node, or show
# that task the GPUs of one rank and not all of the node.
_TASK_VARIABLES = (
    *("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_DISTRIBUTION"),
    *("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_NTASKS_PER_GPU", "SLURM_GPU_BIND"),
)


def check(config: Config, logs: Path) -> None:
    """Look at the nodes of this job.

    Raises:
        LaunchError: For the first problem, with the name of the node.
    """
    nonce, content = logs / f".preflight-{allocation.job_id()}", uuid.uuid4().hex
    before_s = time.time()
    try:
        nonce.write_text(content)
        reports = _ask_nodes(config, nonce, content)
    except OSError as error:
        raise LaunchError(
            "the run folder cannot be written",
            where=logs,
            got=error.strerror,
            remedy="choose a writable folder that all nodes share: run.root=FOLDER",
        ) from error
    finally:
        nonce.unlink(missing_ok=True)
    for problem in problems(config, reports, before_s, time.time()):
        raise problem
    if config.cluster.container is None:
        require_build_tools(config)
    sys.stderr.write(different_gpus(reports))
    _check_memory(config, reports)


def _ask_nodes(config: Config, nonce: Path, content: str) -> list[NodeReport]:
    nodes = config.cluster.nodes
    store = config.data.store
    folder = "" if "://" in store else str(Path(store).resolve())
    # By its path, so that a node that cannot read this package can still answer.
    program = [sys.executable, probe.__file__, str(nonce.resolve()), content, folder]
    # The torch outside of a container is not that of the ranks.
    if config.train.device != "cpu" and config.cluster.container is None:
        program.append("torch")
    one_each = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpus-per-task=1"]
    environment = {name: value for name, value in os.environ.items() if name not in _TASK_VARIABLES}
    done = subprocess.run(
        # Where sbatch was told --export=NONE, srun would start a bare environment.
        ["srun", "--export=ALL", *one_each, *program],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(lines) != nodes:
        said = done.stderr.strip()
        if _SIGNALLED.search(said):
            raise PassingError(
                "the job was interrupted before its ranks started",
                where=os.environ.get("SLURM_JOB_NODELIST", "srun"),
                got=said,
                remedy="nothing was trained in this start; the same command goes on",
            )
        # srun's own errors are about the job, those of the tasks about a node.
        remedy = f"{_SAME_PYTHON}; {_avoid('NODE')}"
        if "srun: fatal" in said or "Unable to create step" in said:
            remedy = "srun refuses the options or variables of this job: see its message, and "
            remedy += "cluster.setup, cluster.env"
        raise LaunchError(
            "a node of the job cannot start a process",
            where=os.environ.get("SLURM_JOB_NODELIST", "srun"),
            got=said or f"{len(lines)} answers from {nodes} nodes",
            remedy=remedy,
        )
    return sorted(
        (NodeReport(**json.loads(line)) for line in lines), key=lambda report: report.host
    )


def problems(
    config: Config, reports: list[NodeReport], before_s: float, after_s: float
) -> Iterator[LaunchError]:
    """What is wrong with the nodes, most important first.

    Args:
        config: The run.
        reports: One per node.
        before_s: This node's clock before the nodes were asked, in seconds since the epoch.
        after_s: This node's clock afterwards.
    """
    for report in reports:
        if report.python != reports[0].python:
            yield LaunchError(
                "the nodes have different Pythons or packages",
                where=report.host,
                got=f"{report.python}; {reports[0].host} has {reports[0].python}",
                remedy=f"{_SAME_PYTHON}; {_avoid(report.host)}",
            )
        if report.python and not report.package:
            yield LaunchError(
                "a node has no segresmamba to import",
                where=report.host,
                got=f"{sys.executable}: {report.python}",
                remedy=f"{_SAME_PYTHON}; {_avoid(report.host)}",
            )
    for report in reports:
        yield from _file_problems(config, report)
    for report in reports:
        yield from _resource_problems(config, report)
        if not before_s - CLOCK_TOLERANCE_S < report.time_s < after_s + CLOCK_TOLERANCE_S:
            yield LaunchError(
                "the clocks of the nodes disagree",
                where=report.host,
                got=f"{report.time_s - before_s:+.0f} s against the first node",
                remedy=_avoid(report.host),
            )


def different_gpus(reports: list[NodeReport]) -> str:
    """A line for the log if the nodes have different GPUs; else nothing."""
    kinds = {
        report.host: f"{report.gpu_name} {report.gpu_memory_gib:.0f} GiB" for report in reports
    }
    if len(set(kinds.values())) < 2:
        return ""
    found = ", ".join(f"{host} {kind.strip()}" for host, kind in kinds.items())
    return (
        f"warning: the nodes have different GPUs ({found}); each step waits for the slowest, and "
        "the smallest must hold it: cluster.constraint=FEATURE asks for equal ones\n"
    )


def _check_memory(config: Config, reports: list[NodeReport]) -> None:
    """Ask the planner again, with the smallest GPU that the job got, if the run has a plan."""
    smallest = min(
        (report for report in reports if report.gpu_memory_gib),
        key=lambda report: report.gpu_memory_gib,
        default=None,
    )
    if smallest is None or config.plan.gpu_memory_gib is None:
        return
    plan = config.plan.model_copy(update={"gpu_memory_gib": smallest.gpu_memory_gib})
    try:
        require_fit(config.model_copy(update={"plan": plan}), f"the GPUs of {smallest.host}")
    except LaunchError as error:
        if config.plan.strict:
            raise
        # What keeps the planner from answering need not keep the ranks from training.
        sys.stderr.write(f"warning: {error}\n")


def require_build_tools(config: Config) -> None:
    """Refuse a job whose scans would need a compiler that this node, the first, does not have.

    Raises:
        LaunchError: Naming what is missing.
    """
    backend = getattr(config.model, "scan_backend", None)
    on_gpus = config.cluster.gpus_per_node and config.train.device != "cpu"
    tool = missing_build_tool() if on_gpus else None
    # Without Triton, auto goes on with mamba-ssm, or else with an implementation for tests.
    other = backend == "auto" and find_spec("selective_scan_cuda")
    if tool is None or other or backend not in ("auto", "triton"):
        return
    raise LaunchError(
        "the scans on GPUs need a compiler that the nodes do not have",
        where=f"model.scan_backend on {socket.gethostname()}",
        got=f"{backend}, which is triton, without {tool}",
        remedy=f"{INSTALL_BUILD_TOOLS}; or load a compiler's module in cluster.setup",
    )


def _file_problems(config: Config, report: NodeReport) -> Iterator[LaunchError]:
    if not report.shared:
        yield LaunchError(
            "the run folder is not shared between the nodes",
            where="run.root",
            got=f"{config.run.root}: {report.host} does not see what the first node wrote there",
            remedy="choose a folder on a file system that all nodes share: run.root=FOLDER",
        )
    if report.write_error:
        yield LaunchError(
            "the run folder cannot be written",
            where=f"run.root on {report.host}",
            got=f"{config.run.root}: {report.write_error}",
            remedy="choose a writable folder on a file system that all nodes share",
        )
    if report.store_error:
        yield LaunchError(
            "the store cannot be read",
            where=f"data.store on {report.host}",
            got=f"{config.data.store}: {report.store_error}",
            remedy="give its full path on a file system that all nodes share",
        )


def _resource_problems(config: Config, report: NodeReport) -> Iterator[LaunchError]:
    cluster, data = config.cluster, config.data
    # What the readers of a node keep ready. One channel is counted; more channels need more.
    crops = data.workers * data.prefetch * config.train.batch_size
    crops_per_node = crops / cluster.nodes / config.train.accumulation
    depth, height, width = data.patch
    shm_gib = crops_per_node * depth * height * width * 4 / 2**30
    memory_gib = cluster.tasks_per_node * (RANK_GIB + READER_GIB * data.workers)
    if report.gpu_error:
        yield LaunchError(
            "the GPUs of a node do not answer",
            where=report.host,
            got=report.gpu_error,
            remedy=_avoid(report.host),
        )
    on_gpus = cluster.gpus_per_node and config.train.device != "cpu"
    if on_gpus and report.gpus < cluster.tasks_per_node:
        yield LaunchError(
            "there are more ranks than GPUs on a node",
            where=report.host,
            got=f"{cluster.tasks_per_node} ranks, {report.gpus} GPUs",
            remedy="ask for one GPU per rank: cluster.gpus_per_node=N cluster.tasks_per_node=N "
            "(sbatch --gpus-per-node=N --ntasks-per-node=N)",
        )
    if report.torch_error:
        yield LaunchError(
            "torch cannot use the GPUs of a node, and its ranks would train on the CPU",
            where=report.host,
            got=report.torch_error,
            remedy="install a build of torch that fits the driver, which nvidia-smi shows "
            f"(https://pytorch.org/get-started); {_avoid(report.host)}; or give train.device=cpu",
        )
    if report.memory_gib < memory_gib:
        yield LaunchError(
            "a node has too little memory for its ranks and their readers",
            where=report.host,
            got=f"{report.memory_gib:.1f} GiB, at least {memory_gib:.1f} GiB are needed",
            remedy="ask for more with cluster.memory_gib (sbatch --mem), or lower data.workers",
        )
    if report.shm_gib < shm_gib:
        yield LaunchError(
            "/dev/shm is too small for the batches that readers hand over",
            where=report.host,
            got=f"{report.shm_gib:.2f} GiB free, at least {shm_gib:.2f} GiB are needed",
            remedy="lower data.workers or data.prefetch, or data.workers=0; in a container "
            "give it more, as in docker --shm-size",
        )


def _avoid(host: str) -> str:
    return (
        f"leave the node out with cluster.exclude={host} (sbatch --exclude={host}) and tell the "
        "administrators"
    )


def main() -> None:
    """Print the job's port. Standard error is the job's log: it gets the start and any problem."""
    logs, job_id = Path(sys.argv[1]), allocation.job_id()
    start = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    when, nodes = time.strftime("%Y-%m-%d %H:%M:%S"), os.environ.get("SLURM_JOB_NODELIST")
    sys.stderr.write(f"job {job_id}, start {start + 1}, {when}, on {nodes}\n")
    succession.forget(logs, job_id)
    try:
        check(load_job(logs, job_id).resolved_config(), logs)
    except Exception as error:
        verdict = sort_error(error)
        sys.stderr.write(verdict.text + "\n")
        sys.exit(verdict.exit_code)
    print(free_port(job_id))


if __name__ == "__main__":
    main()
