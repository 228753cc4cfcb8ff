"""Run folders whose MLflow is a database, and a real server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from segresmamba.config import TrackingConfig
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking.journal import Journal
from segresmamba.tracking.mlflow.state import open_state
from tests.tracking.server import Server


@pytest.fixture(autouse=True)
def _impatient_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """No telemetry, no retries of MLflow's own."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")


@pytest.fixture
def root(tmp_path: Path, database: Path) -> Path:
    """A folder of runs whose database has its tables already."""
    shutil.copy(database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def run(root: Path) -> Path:
    """A run folder whose journal goes to the database in `root`."""
    folder = root / "run"
    folder.mkdir()
    open_state(folder, TrackingConfig(), root).save(folder)
    return folder


@pytest.fixture
def journal(run: Path) -> Journal:
    """The journal of `run`, open."""
    journal = Journal(RunFolder(run).journal, name="my run")
    yield journal
    journal.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[Server]:
    """A real server on a database of its own; not yet started."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(database, folder / "mlflow.db")
    server = Server(folder)
    yield server
    server.kill()
