"""MLflow's tables in a real PostgreSQL, which asks for a password.

Debian: apt install postgresql; the driver: pip install 'segresmamba[postgresql]'.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.ports import free_port
from segresmamba.config import TrackingConfig
from segresmamba.config.tracking import PASSWORD_VARIABLE
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking import TrackingError, sync
from segresmamba.tracking.journal import Journal
from segresmamba.tracking.mlflow.state import UploadState, open_state
from tests.tracking.mlflow.test_sink import FIRST_USE

PASSWORD = "p%40ss"  # as it stands in a URI: the password itself has an @
RUNS = 4


def find_bin() -> Path | None:
    """The folder of PostgreSQL's programs; Debian keeps them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_bin() is None, reason="NO POSTGRESQL IS TESTED: apt install postgresql"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("psycopg") is None,
        reason="NO POSTGRESQL IS TESTED: pip install 'segresmamba[postgresql]'",
    ),
]


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    """A database server of this test's own, on a free port."""
    bin_folder = find_bin()
    assert bin_folder is not None
    folder = Path(tempfile.mkdtemp(prefix="segresmamba-postgresql-", dir="/tmp"))
    (folder / "password").write_text("p@ss")
    as_user: dict[str, Any] = {}
    if os.getuid() == 0:  # it refuses to be run by root
        nobody = pwd.getpwnam("nobody")
        as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        for path in (folder, folder / "password"):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
    init = [bin_folder / "initdb", "-D", folder / "data", "-U", "me", "-A", "scram-sha-256"]
    init += [f"--pwfile={folder / 'password'}", "--no-sync"]
    subprocess.run(init, check=True, capture_output=True, cwd=folder, **as_user)
    port = free_port(str(folder))
    serve = [bin_folder / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(serve, cwd=folder, stderr=log, stdout=log, **as_user)
    try:
        ready = [bin_folder / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        deadline = time.monotonic() + 200
        while subprocess.run(ready, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"postgresql://me:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # does not wait for connections to end
        server.wait()
        shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "")


def new_run(root: Path, name: str, uri: str) -> Path:
    folder = root / name
    folder.mkdir()
    journal = Journal(RunFolder(folder).journal, name=name)
    for step in range(3):
        journal.append("metrics", step=step, epoch=None, values={"loss": 1 / (step + 1)})
    journal.append("status", status="finished")
    journal.close()
    open_state(folder, TrackingConfig(uri=uri, group="sweep"), root).save(folder)
    return folder


def history(run: Path) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    state = UploadState.load(run)
    points = MlflowClient(state.connection_uri).get_metric_history(state.run_id, "loss")
    return [(point.step, point.value) for point in points]


def test_runs_that_start_together_share_a_new_database_and_arrive_once(
    tmp_path: Path, uri: str
) -> None:
    folders = [new_run(tmp_path, f"run{index}", uri) for index in range(RUNS)]
    first_use = [sys.executable, "-c", FIRST_USE, str(tmp_path)]
    started = subprocess.run(first_use, capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stdout + started.stderr
    states = [UploadState.load(folder) for folder in folders]
    assert len({state.run_id for state in states}) == RUNS
    assert len({state.parent_id for state in states}) == 1
    for folder in folders:
        sync(folder)
        assert history(folder) == [(step, 1 / (step + 1)) for step in range(3)]
        assert PASSWORD not in RunFolder(folder).mlflow.read_text()


def test_a_missing_password_is_an_error_that_shows_none(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_run(tmp_path, "run", uri)
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    with pytest.raises(Exception, match="password authentication failed") as error:
        sync(folder)
    assert not isinstance(error.value, TrackingError)  # the variable may be set by the next try
    assert PASSWORD not in str(error.value)
    assert "wrong" not in str(error.value)
