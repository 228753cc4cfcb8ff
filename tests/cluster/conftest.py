"""A real Slurm for the session, where one can be brought up; see `cluster`.

SEGRESMAMBA_CLUSTER=install also installs its Debian packages. Where there is no Slurm the tests are
skipped, and the summary says so.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests import debian
from tests.cluster import cluster
from tests.cluster.jobs import REPOSITORY, Job, Queue, queue
from tests.processes import started

# The experiment that the tests interrupt: two ranks on two nodes.
STEPS, CHECKPOINT_EVERY = 24, 5
_NO_SLURM = "no Slurm: "


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(scope="session")
def slurm_conf() -> Iterator[Path]:
    """The cluster of this process, up for the session."""
    asked = os.environ.get("SEGRESMAMBA_CLUSTER") == "install"
    if asked and cluster.missing() and debian.may_install():
        debian.install(*cluster.PACKAGES)
    if reason := cluster.missing():
        pytest.skip(f"{_NO_SLURM}{reason}")
    with Path(f"{cluster.ROOT}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another session's tests may be at it
        cluster.up()
        try:
            yield cluster.CONF
        finally:
            cluster.down()


@pytest.fixture(autouse=True)
def _on_the_cluster(slurm_conf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Point Slurm's commands there; leave no job to the next test."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_conf))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    # As in an active environment: sbatch's scripts take what is on the PATH.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # The server's job runners are eight processes that tracking does not use.
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    yield
    subprocess.run(["scancel", "--user=root"], check=True)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, with one MLflow database."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def words(tiny_store: Path) -> tuple[str, ...]:
    """The experiment."""
    return (
        "cluster=slurm",
        "cluster.nodes=2",
        "cluster.tasks_per_node=1",
        "cluster.gpus_per_node=1",
        "cluster.cpus_per_task=1",
        "cluster.time_min=60",
        "data=custom",
        f"data.store={tiny_store}",
        "data.patch=[32,32,32]",
        "data.workers=0",
        "model.dims=[8,8]",
        "model.d_state=4",
        "train.device=cpu",  # torch cannot use what stands in for the GPUs of this cluster
        f"train.max_steps={STEPS}",
        f"train.checkpoint_every={CHECKPOINT_EVERY}",
        "train.warmup_steps=1",
        "train.batch_size=4",
        "train.lr=1e-3",
        "train.log_every=1",
        "train.precision=fp32",
        "train.threads=1",
        "validation.overlap=0",
        "validation.overlays=0",
        "tracking.emissions=false",
    )


@dataclass(frozen=True)
class Followed:
    """A run that nothing interrupted, as its user saw it."""

    job: Job
    code: int
    out: str
    err: str
    submitted_cpu_s: float
    """Processor time until the job's number was printed, sbatch included; on an idle machine the
    clock shows little more."""


@pytest.fixture(scope="session")
def reference(slurm_conf: Path, words: tuple[str, ...], root: Path) -> Followed:
    """`python -m launch train --follow` to the end."""
    command = [sys.executable, "-m", "launch", "train", "--follow", *words]
    environment = os.environ | {"SLURM_CONF": str(slurm_conf), "OMP_NUM_THREADS": "1"}
    with (
        (root / "stderr").open("w") as errors,
        started(
            [*command, f"run.root={root}", "run.name=reference"],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        assert process.stdout is not None
        first = process.stdout.readline()
        spent = psutil.Process(process.pid).cpu_times()
        rest = process.stdout.read()
        process.wait(timeout=200)
    job = Job(first.split()[1].strip(","), root / "reference")
    err = (root / "stderr").read_text()
    submitted_cpu_s = spent.user + spent.system + spent.children_user + spent.children_system
    return Followed(job, process.returncode, first + rest, err, submitted_cpu_s)


@pytest.fixture
def queue_run(words: tuple[str, ...], root: Path) -> Queue:
    """A function of a run's name and more overrides that queues it."""
    return lambda name, *more: queue((*words, *more), root, name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # From the reports, which come from other processes under pytest-xdist.
    skipped = [report.longrepr for report in terminalreporter.stats.get("skipped", ())]
    reasons = [why[2].partition(_NO_SLURM)[2] for why in skipped if _NO_SLURM in why[2]]
    if reasons:
        terminalreporter.section("THE CLUSTER TESTS DID NOT RUN", sep="!", yellow=True, bold=True)
        terminalreporter.line(f"Nothing was shown on a real Slurm: {reasons[0]}")
        terminalreporter.line("SEGRESMAMBA_CLUSTER=install installs it where root may use apt-get.")
