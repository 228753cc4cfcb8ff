"""The tracker of rank 0: every call is one line in the journal, which the uploader follows."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from segresmamba import __version__
from segresmamba.config import TrackingConfig
from segresmamba.tracking.journal import JOURNAL_NAME, Journal
from segresmamba.tracking.mlflow.state import UploadState, open_state
from segresmamba.tracking.mlflow.uploader import Uploader
from segresmamba.tracking.protocol import Status, Tracker, TrackingError

logger = logging.getLogger(__name__)

# How long closing may wait for the uploader. A preempted job has seconds to live.
WAIT_S: dict[Status, float] = {"finished": 120.0, "failed": 20.0, "preempted": 5.0}


def open_tracker(folder: Path, config: TrackingConfig, *, root: Path, run_name: str) -> Tracker:
    """Open the journal of a run and start the upload to MLflow.

    Args:
        folder: The run folder; a run that is resumed continues its journal and its MLflow run.
        config: Where metrics go besides the journal.
        root: Folder of all runs, which holds the default database.
        run_name: Name of the run in MLflow.

    Raises:
        ConfigError: If tracking.uri is none that MLflow knows.
        TrackingError: If the journal cannot be written, or another process is writing it.
    """
    state = open_state(folder, config, root) if config.enabled else None
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / JOURNAL_NAME, name=run_name)
    tracker = RunTracker(folder, journal, state, config)
    tracker.start()
    return tracker


class RunTracker:
    """A `Tracker` of a journal and, where there is a state of it, of an upload to MLflow.

    A full disk or a dead server is logged, never raised: training goes on.
    """

    def __init__(
        self, folder: Path, journal: Journal, state: UploadState | None, config: TrackingConfig
    ) -> None:
        self._folder = folder
        self._config = config
        self._journal = journal
        self._state = state
        self._uploader: Uploader | None = None
        self._lost_records = 0

    def start(self) -> None:
        """Record that the run is running, and start the uploader."""
        self._append("status", status="running", host=socket.gethostname(), pid=os.getpid())
        if self._state is None:
            return
        try:
            self._state.save(self._folder)
            self._uploader = Uploader(self._folder, self._config.logs)
        except OSError as error:
            logger.error("nothing is sent to MLflow, the journal has it all: %s", error)

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None while there is none."""
        state = self._current_state()
        return state.run_id if state else None

    @property
    def ui_hint(self) -> str:
        """The command or the URL that shows the run; without MLflow, the journal."""
        state = self._current_state()
        return state.ui_hint if state else str(self._folder / JOURNAL_NAME)

    def params(self, values: Mapping[str, Any]) -> None:
        """Record the settings of the run, nested as they are in its configuration."""
        self._append("params", values=values)

    def tags(self, values: Mapping[str, str]) -> None:
        """Record facts about the run that are not settings."""
        self._append("tags", values=values)

    def metrics(
        self, values: Mapping[str, float], *, step: int, epoch: float | None = None
    ) -> None:
        """Record measurements; numbers of NumPy and torch are converted."""
        numbers = {key: float(value) for key, value in values.items()}
        self._append("metrics", step=step, epoch=epoch, values=numbers)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or folder; the path is kept relative to the run folder if it lies in it."""
        self._append("artifact", path=self._relative(path), folder=folder)

    def dataset(self, name: str, *, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Record what the run is trained on."""
        self._append("dataset", name=name, digest=digest, source=source, profile=profile)

    def model(self, folder: Path, *, step: int, loader: str) -> None:
        """Record the model, to be registered if tracking.register_model names one."""
        self._append(
            "model",
            path=self._relative(folder),
            step=step,
            loader=loader,
            requirements=[f"segresmamba=={__version__}"],
            register=self._config.register_model,
        )

    def flush(self) -> None:
        """Force the journal to the disk."""
        try:
            self._journal.flush()
        except OSError as error:
            logger.error("the journal is not on the disk: %s", error)

    def close(self, status: Status) -> None:
        """Record how the run ended, and wait a while for MLflow to have everything."""
        self._append("status", status=status)
        self.flush()
        self._journal.close()
        if self._uploader is not None:
            self._uploader.close(WAIT_S[status])
            self._uploader = None
            self._report_missing()

    def _relative(self, path: Path) -> str:
        path = path.resolve()
        if path.is_relative_to(self._folder.resolve()):
            path = path.relative_to(self._folder.resolve())
        return path.as_posix()

    def _append(self, kind: str, **body: Any) -> None:
        try:
            self._journal.append(kind, **body)
        except OSError as error:
            self._lost_records += 1
            if self._lost_records == 1:
                logger.error("the journal cannot be written, metrics are being lost: %s", error)

    def _current_state(self) -> UploadState | None:
        """The state as the uploader last saved it."""
        if self._state is not None:
            with suppress(TrackingError):
                self._state = UploadState.load(self._folder)
        return self._state

    def _report_missing(self) -> None:
        state = self._current_state()
        size = (self._folder / JOURNAL_NAME).stat().st_size
        if state is not None and (missing := size - state.sent_bytes):
            logger.warning(
                "MLflow (%s) lacks the last %d bytes of the journal; send them with: "
                "segresmamba sync %s",
                state.shown_uri,
                missing,
                self._folder,
            )
