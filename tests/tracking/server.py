"""A real MLflow server to test against."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from launch.ports import free_port


def wait_for(condition: Callable[[], bool], patience_s: float = 250.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


class Server:
    """A real MLflow server on a free port, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port(str(folder))
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """What `mlflow server` runs, whose own imports would take half of each start.

        `tests/tracking/mlflow/test_server.py` runs the command itself.
        """
        variables = {
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{self.folder}/mlflow.db",
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"{self.folder}/artifacts",
            "_MLFLOW_SGI_NAME": "uvicorn",
        }
        command = [sys.executable, "-m", "uvicorn", "--host=127.0.0.1", f"--port={self.port}"]
        set_them = [f"{name}={value}" for name, value in variables.items()]
        return ["env", *set_them, *command, "mlflow.server.fastapi_app:app"]

    def start(self) -> None:
        """Start it, unless it runs."""
        if self._process is not None:
            return
        # Its job runners are eight processes that tracking does not use.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment,
                start_new_session=True,
            )

    def wait(self) -> None:
        wait_for(self._answers)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
        except (urllib.error.URLError, OSError):
            return False
        return True
