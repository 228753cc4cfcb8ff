"""How MLflow is imported, set up and connected to, and what its errors mean.

Only this module and `server` import MLflow. The others are given a client, and take the library
from here when they need its classes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from segresmamba.config.tracking import server_login
from segresmamba.storage.atomic import atomic_path, remove_leftovers
from segresmamba.storage.locks import locked
from segresmamba.tracking.mlflow.login import USER, server_password
from segresmamba.tracking.mlflow.state import UploadState, sqlite_uri

# MLflow's own retries would hide an outage for minutes, and its telemetry needs the internet.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

# What this module has put into the environment for MLflow to log in with.
_login: dict[str, str] = {}

# Time-out and rate limit: the same request may succeed later. Any other 4xx is final.
TRY_AGAIN_CODES = (408, 429)


def library() -> Any:
    """The library, imported at its first use because the import takes seconds."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    return mlflow


def connect(state: UploadState, folder: Path) -> Any:
    """A client for the MLflow of a run folder; a database without tables gets them."""
    if not state.is_database:
        return reading_client(state, folder)
    file, lock = state.sqlite_file, folder.parent / ".mlflow-database.lock"
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.with_name(f".{file.name}.lock")
    # The first connection makes the tables, and fails if another process is making them.
    with locked(lock):
        if file is not None and not file.exists():
            # A process that is killed here would leave a file with some of the tables.
            remove_leftovers(file.parent, file.name)
            with atomic_path(file) as new:
                new.touch()  # SQLite would let nobody else write, whatever the umask
                library().MlflowClient(sqlite_uri(new))
        return reading_client(state)


def reading_client(state: UploadState, folder: Path | None = None) -> Any:
    """A client for an MLflow that exists already.

    Args:
        state: Names it.
        folder: Folder of a run or of all runs, for the login of their server.
    """
    client = library().MlflowClient
    if not state.is_database:
        # In the URI, MLflow's error messages would show it.
        _, user, password = server_login(state.uri)
        if folder is not None and (found := server_password(folder, state.uri)):
            user, password = USER, found
        # MLflow looks for a login in the environment, where that for the server before may be.
        for name, value in _login.items():
            if os.environ.get(name) == value:
                del os.environ[name]
        _login.clear()
        if user and password:
            _login.update(MLFLOW_TRACKING_USERNAME=user, MLFLOW_TRACKING_PASSWORD=password)
            os.environ.update(_login)
    return client(state.connection_uri)


def error_name(error: Exception) -> str:
    """MLflow's code of an error, such as RESOURCE_DOES_NOT_EXIST; empty for other errors."""
    return str(getattr(error, "error_code", ""))


def is_final(error: Exception) -> bool:
    """Whether MLflow would refuse the same request again."""
    response = getattr(error, "response", None)
    if response is not None:
        code = response.status_code
    elif hasattr(error, "get_http_status_code"):
        code = error.get_http_status_code()
    else:
        return False
    return 400 <= code < 500 and code not in TRY_AGAIN_CODES


def first_line(error: Exception) -> str:
    """The first line of an error, or its type if it has no text."""
    return (str(error).splitlines() or [type(error).__name__])[0]
