"""The only module that imports mlflow: how it is set up, and how one connects to it.

The other modules take a client, or the library from here when they need its classes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from segresmamba.config.tracking import server_login
from segresmamba.storage.locks import locked
from segresmamba.tracking.mlflow.state import SQLITE_PREFIX, UploadState

# MLflow's own retries would hide an outage for minutes, and its telemetry needs the internet.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def library() -> Any:
    """The library, imported at its first use: it takes seconds."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    return mlflow


def connect(state: UploadState, folder: Path) -> Any:
    """A client for a run folder's MLflow; a database that has no tables yet gets them."""
    if not state.is_database:
        return reading_client(state)
    # The first connection makes the tables; two at once trip over each other.
    with locked(_database_lock(state, folder)):
        if state.sqlite_file and not state.sqlite_file.exists():
            _make_database(state.sqlite_file)
        return reading_client(state)


def reading_client(state: UploadState) -> Any:
    """A client for what is already there."""
    client = library().MlflowClient
    if not state.is_database:
        _log_in(state)
    return client(state.connection_uri)


def _log_in(state: UploadState) -> None:
    """Where MLflow looks for the login; in the URI, its error messages would show it."""
    _, user, password = server_login(state.uri)
    if user and password:
        os.environ["MLFLOW_TRACKING_USERNAME"] = user
        os.environ["MLFLOW_TRACKING_PASSWORD"] = password


def _database_lock(state: UploadState, folder: Path) -> Path:
    """Lock file of the database: beside an SQLite file, beside the run folder for any other."""
    if state.sqlite_file is None:
        return folder.parent / ".mlflow-database.lock"
    state.sqlite_file.parent.mkdir(parents=True, exist_ok=True)
    return state.sqlite_file.with_name(f".{state.sqlite_file.name}.lock")


def _make_database(path: Path) -> None:
    """Make the tables under another name: half of them, left by a kill, would be of no use."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    library().MlflowClient(f"{SQLITE_PREFIX}{new}")
    new.rename(path)
