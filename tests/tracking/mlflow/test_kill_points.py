"""The uploader dies by kill -9 wherever it can hurt; what is sent again changes nothing."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segresmamba.config import TrackingConfig
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking import sync
from segresmamba.tracking.energy.ledger import Ledger
from segresmamba.tracking.energy.system import node_journal
from segresmamba.tracking.journal import Journal
from segresmamba.tracking.mlflow.state import open_state

# A helper that has imported MLflow once. Each line of its input names a run folder and a number:
# a child syncs that run and kills itself at that point of its way, or reaches the end. Points are
# before and after each commit of the database, each renaming of mlflow.json, each copy of a file.
HELPER = """
import os, pathlib, signal, sys
import mlflow.pyfunc, mlflow.store.tracking.sqlalchemy_store, mlflow.store.model_registry
from mlflow import MlflowClient
from sqlalchemy import event
from sqlalchemy.orm import Session
from segresmamba.tracking import sync

COPIES = ("log_artifact", "log_text", "log_model_artifacts")

def sync_until(folder, last):
    passed = 0

    def point(*_):
        nonlocal passed
        passed += 1
        if passed == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def between_points(function):
        def wrapped(*arguments, **options):
            point()
            result = function(*arguments, **options)
            point()
            return result
        return wrapped

    event.listen(Session, "before_commit", point)
    event.listen(Session, "after_commit", point)
    os.replace = between_points(os.replace)
    for name in COPIES:
        setattr(MlflowClient, name, between_points(getattr(MlflowClient, name)))
    sync(folder)

for line in sys.stdin:
    folder, last = line.rsplit(" ", 1)
    pid = os.fork()
    if pid == 0:
        try:
            sync_until(pathlib.Path(folder), int(last))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
KILLED, DONE = -9, 0
NEVER = 10**6
# They leave out the run of the fixture `database`, whose experiment is the first.
QUERIES = {
    "runs": "select name, status, lifecycle_stage from runs where experiment_id != 1",
    "parents": "select child.name, parent.name from tags join runs child using (run_uuid) "
    "join runs parent on tags.value = parent.run_uuid",
    "params": "select key, value from params",
    "tags": "select name, key, tags.value from tags join runs using (run_uuid) "
    "where key != 'mlflow.parentRunId' and experiment_id != 1",
    "metrics": "select name, key, value, is_nan, timestamp, step from metrics "
    "join runs using (run_uuid)",
    "latest": "select key, value, is_nan, timestamp, step from latest_metrics",
    "datasets": "select name, digest from datasets",
    "inputs": "select source_type, destination_type from inputs",
    "models": "select name, status from logged_models",
    "versions": "select name, version from model_versions",
}


def record_a_run(root: Path) -> Path:
    """A sweep's trial that was preempted, resumed with other settings, and evaluated twice."""
    folder = root / "trial"
    (folder / "best").mkdir(parents=True)
    (folder / "best" / "weights.pt").write_bytes(b"weights")
    (folder / "overlays").mkdir()
    (folder / "overlays" / "case.png").write_bytes(b"picture")
    journal = Journal(RunFolder(folder).journal, name="trial")
    for start, (ranks, status) in enumerate(((2, "preempted"), (4, "finished"))):
        journal.append("status", status="running", host="node", pid=1)
        journal.append("params", values={"ranks": ranks, "lr": 0.1, "cases": "c" * 7000})
        journal.append("tags", values={"scan_backend": "cpu"})
        if start:
            journal.append("attempt", step=2)
        journal.append("dataset", name="spleen", digest="9c1e" * 16, source="s", profile={"n": 9})
        for step in range(3 * start, 4 + 3 * start):  # step 3 in both attempts
            values = {"loss": start + 1 / (step + 1), "dice": float("nan")}
            journal.append("metrics", step=step, epoch=step / 10, values=values)
        journal.append("artifact", path="overlays", folder="")
        if status == "finished":
            journal.append(
                "model", path="best", step=6, loader="segresmamba.errors", requirements=[],
                register="spleen",
            )  # fmt: skip
        journal.append("status", status=status)
    for dice in (0.8, 0.9):
        journal.append("metrics", step=6, epoch=None, values={"evaluation/dice": dice})
        journal.append("status", status="finished")
    journal.close()
    samples = node_journal(folder, "n1")
    samples.parent.mkdir()
    node = Journal(samples, name="n1")
    node.append("metrics", step=0, epoch=None, values={"system/n1/cpu": 1.0})
    node.close()
    Ledger(folder).claim({"country": "FRA"})
    open_state(folder, TrackingConfig(group="sweep"), root).save(folder)
    return folder


class World:
    """A recorded run, what MLflow has of it after a sync that nothing cut, and the helper."""

    def __init__(self, root: Path, database: Path) -> None:
        self._root = root
        self._count = 0
        self._template = root / "template"
        self._template.mkdir()
        shutil.copy(database, self._template / "mlflow.db")
        record_a_run(self._template)
        whole = self.another()
        sync(whole)
        self.expected = in_mlflow(whole.parent)
        self._helper = subprocess.Popen(
            [sys.executable, "-c", HELPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def another(self) -> Path:
        """The run as it was before its first sync, with a database of its own."""
        self._count += 1
        root = self._root / str(self._count)
        shutil.copytree(self._template, root)
        folder = root / "trial"
        open_state(folder, TrackingConfig(group="sweep"), root).save(folder)
        return folder

    def sync_until(self, folder: Path, point: int) -> int:
        """Sync in a process that kills itself at a point; return its exit code."""
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        self._helper.stdin.write(f"{folder} {point}\n")
        self._helper.stdin.flush()
        return int(self._helper.stdout.readline())

    def close(self) -> None:
        """End the helper."""
        self._helper.communicate()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, database: Path) -> World:
    world = World(tmp_path_factory.mktemp("kills"), database)
    yield world
    world.close()


def in_mlflow(root: Path) -> dict[str, Any]:
    """Everything that MLflow has, without the names that it gives."""
    connection = sqlite3.connect(root / "mlflow.db")
    try:
        found = {
            name: sorted(connection.execute(query), key=str) for name, query in QUERIES.items()
        }
    finally:
        connection.close()
    # A copy that was cut in the middle leaves MLflow's own temporary file.
    files = [path for path in (root / "mlartifacts").rglob("[!.]*") if path.is_file()]
    found["files"] = sorted(path.name for path in files)
    return found


def test_the_run_has_all_that_can_be_sent_twice(world: World) -> None:
    expected = world.expected
    assert [row[:2] for row in expected["runs"]] == [
        ("sweep", "FINISHED"),
        ("trial", "FINISHED"),
        ("trial, attempt 1", "KILLED"),
    ]
    assert expected["parents"] == [("trial", "sweep"), ("trial, attempt 1", "trial")]
    assert ("trial", "changed.ranks", "4") in expected["tags"]
    assert ("trial, attempt 1", "changed.ranks", "4") not in expected["tags"]
    assert [len(expected[name]) for name in ("datasets", "models", "versions")] == [1, 1, 1]
    losses = {
        name: sorted((row[5], row[2]) for row in expected["metrics"] if row[:2] == (name, "loss"))
        for name in ("trial", "trial, attempt 1")
    }
    assert [step for step, _ in losses["trial"]] == list(range(7))
    assert losses["trial"][3] == (3, 1.25)
    assert losses["trial, attempt 1"][3] == (3, 0.25)
    assert {"case.png", "cases.txt", "emissions.json", "weights.pt"} <= set(expected["files"])


@pytest.mark.slow
@settings(
    deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(points=st.lists(st.integers(1, 260), min_size=1, max_size=3))
def test_wherever_uploads_are_killed_everything_arrives_once(
    world: World, points: list[int]
) -> None:
    folder = world.another()
    for point in points:
        if world.sync_until(folder, point) == DONE:
            break
    for _ in range(2):
        assert world.sync_until(folder, NEVER) == DONE
        assert in_mlflow(folder.parent) == world.expected
