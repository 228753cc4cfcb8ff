"""The tracker of rank 0: each call appends a line to the journal, and the uploader reads that."""

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
from segresmamba.storage.patience import patiently
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking.attempts import goes_back, missing_steps
from segresmamba.tracking.journal import FAULTS_TAG, Journal, read_journal, separate_copy
from segresmamba.tracking.mlflow.state import UploadState, open_state
from segresmamba.tracking.mlflow.uploader import Uploader, wait_for_uploader
from segresmamba.tracking.protocol import JournalHeldError, Status, Tracker, TrackingError

logger = logging.getLogger(__name__)

_RECORD_BYTES = 1 << 10
"""About the size of a record."""
RESTARTS = 3
"""How often an uploader that was killed is replaced."""
# How long `close` waits for the uploader: Slurm kills a preempted job within seconds.
WAIT_S: dict[Status, float] = {"finished": 120.0, "failed": 20.0, "preempted": 5.0}


def open_tracker(
    folder: Path, config: TrackingConfig, *, root: Path, run_name: str, begins: bool = True
) -> Tracker:
    """Open the journal of a run and start the upload to MLflow.

    Args:
        folder: The run folder. A resumed run continues its journal and its MLflow run.
        config: Where metrics go besides the journal.
        root: The folder of all runs, where the default database lies.
        run_name: Name of the run in MLflow.
        begins: Whether a run begins or goes on. If not, its ranks have ended, and the caller adds
            what they could not record themselves.

    Raises:
        ConfigError: If MLflow does not know such a tracking.uri.
        TrackingError: If the journal cannot be written, or another process is writing it.
    """
    # A mistake in tracking.uri is found here, before anything is written.
    state = open_state(folder, config, root) if config.enabled else None
    folder.mkdir(parents=True, exist_ok=True)
    own_id = separate_copy(RunFolder(folder).journal)
    if state is not None and own_id is not None:
        state.restart(own_id)
    known_id = state.journal if state else ""
    journal = Journal(RunFolder(folder).journal, name=run_name, known_id=known_id)
    if state is not None and state.sent_bytes > journal.size:
        state.sent_bytes = 0  # the journal was lost, and begins again
    return RunTracker(folder, journal, state, config, begins=begins)


class RunTracker(Tracker):
    """A `Tracker` that writes a journal, and starts an uploader for it.

    A full disk or a dead server is logged, never raised: training goes on. It ends if the run has
    begun again in another process, see `Journal.append`.

    Args:
        folder: The run folder.
        journal: The journal in it, open.
        state: Where the journal is sent; None starts no uploader.
        config: The settings of tracking.
        begins: See `open_tracker`. A run that has ended gets an uploader only at the end, and only
            if that of its ranks lives no more.
    """

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        state: UploadState | None,
        config: TrackingConfig,
        *,
        begins: bool,
    ) -> None:
        self._folder = folder
        self._config = config
        self._journal = journal
        self._state = state
        self._begins = begins
        self._uploader: Uploader | None = None
        self._restarts = 0
        self._lost_records = 0
        if begins:
            self._append("status", status="running", host=socket.gethostname(), pid=os.getpid())
        if journal.faults:
            self.tags({FAULTS_TAG: journal.faults})
        if begins and state is not None:
            self._start_uploader(state)

    def ui_hint(self) -> str:
        """The command or the URL that shows the run; without MLflow, the path of the journal."""
        state = self._current_state()
        return state.ui_hint if state else str(RunFolder(self._folder).journal)

    def params(self, values: Mapping[str, Any]) -> None:
        """Record the settings of the run, nested as they are in its configuration."""
        self._append("params", values=values)

    def tags(self, values: Mapping[str, str]) -> None:
        """Record facts about the run that are not settings."""
        self._append("tags", values=values)

    def metrics(
        self, values: Mapping[str, float], *, step: int, epoch: float | None = None
    ) -> None:
        """Record measurements, which may be numbers of NumPy or torch."""
        numbers = {key: float(value) for key, value in values.items()}
        self._append("metrics", step=step, epoch=epoch, values=numbers)
        self._replace_killed_uploader()

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or folder, relative to the run folder if it lies in it."""
        self._append("artifact", path=self._relative(path), folder=folder)

    def dataset(self, name: str, *, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Record what the run is trained on."""
        self._append("dataset", name=name, digest=digest, source=source, profile=profile)

    def model(self, folder: Path, *, step: int, loader: str) -> None:
        """Record the model; MLflow registers it if tracking.register_model is set."""
        self._append(
            "model",
            path=self._relative(folder),
            step=step,
            loader=loader,
            requirements=[f"segresmamba=={__version__}"],
            register=self._config.register_model,
        )

    def goes_back(self, step: int) -> bool:
        """See `Tracker`."""
        try:
            records = read_journal(RunFolder(self._folder).journal)
        except (OSError, TrackingError) as error:
            logger.error("what the run recorded before cannot be read: %s", error)
            return False
        if missing := missing_steps(records, step):
            logger.warning("the journal lacks steps before the checkpoint of %d: %s", step, missing)
            self.tags({"missing_steps": missing})
        return goes_back(records, step)

    def attempt(self, step: int) -> None:
        """Record that another attempt begins after this step."""
        logger.warning(
            "what was recorded of steps after %d belongs to other settings or to a run that had "
            "finished: it is kept as an earlier attempt",
            step,
        )
        self._append("attempt", step=step)

    def flush(self) -> None:
        """Write the journal to disk."""
        try:
            self._journal.flush()
        except OSError as error:
            logger.error("the journal cannot be written to disk: %s", error)

    def close(self, status: Status) -> None:
        """Record how the run ended, and wait up to `WAIT_S` until MLflow has everything."""
        with suppress(JournalHeldError):  # the status is that of the other process
            self._append("status", status=status)
        self.flush()
        self._journal.close()
        if self._state is None:
            return
        wait_s = WAIT_S[status]
        if not self._begins and status == "preempted":
            # This is told of a trial that a search gave up. Nobody goes on with it, so its records
            # are sent now or never, and no queue waits for this process to end.
            wait_s = WAIT_S["finished"]
        if not self._begins and not wait_for_uploader(self._folder, wait_s):
            # That uploader may have sent more than this state says. Sending it again is harmless.
            self._start_uploader(self._state)
        self._replace_killed_uploader()
        if self._uploader is not None:
            if self._begins and status == "failed":
                self._uploader.leave(wait_s)
            else:
                self._uploader.close(wait_s)
            self._uploader = None
        state = self._current_state()
        size = RunFolder(self._folder).journal.stat().st_size
        if state is not None and (missing := size - state.sent_bytes):
            logger.warning(
                "MLflow (%s) lacks the last %d bytes of the journal; send them with: "
                "segresmamba sync %s",
                state.shown_uri,
                missing,
                self._folder,
            )

    def _start_uploader(self, state: UploadState) -> None:
        try:
            state.save(self._folder)
            self._uploader = Uploader(self._folder, self._config.logs)
        except OSError as error:
            logger.error("nothing is sent to MLflow; the journal has everything: %s", error)

    def _replace_killed_uploader(self) -> None:
        if self._uploader is None or not self._uploader.was_killed:
            return
        self._uploader.close(0)
        self._uploader = None
        self._restarts += 1
        if self._restarts > RESTARTS:
            logger.error("the uploader was killed once more: nothing more is sent to MLflow")
            return
        logger.warning("the uploader to MLflow was killed (out of memory?): it is started again")
        if (state := self._current_state()) is not None:
            self._start_uploader(state)

    def _relative(self, path: Path) -> str:
        """The path from the run folder if it lies in it, so that the folder can be moved."""
        path = path.resolve()
        if path.is_relative_to(self._folder.resolve()):
            path = path.relative_to(self._folder.resolve())
        return path.as_posix()

    def _append(self, kind: str, **body: Any) -> None:
        try:
            if self._lost_records:  # waited long enough, the last time
                self._journal.append(kind, **body)
            else:
                journal = RunFolder(self._folder).journal
                patiently(lambda: self._journal.append(kind, **body), journal, _RECORD_BYTES)
        except OSError as error:
            self._lost_records += 1
            if self._lost_records == 1:  # training goes on, and would repeat this at every step
                logger.error("the journal cannot be written, metrics are being lost: %s", error)

    def _current_state(self) -> UploadState | None:
        """The state that the uploader saved last."""
        if self._state is not None:
            with suppress(TrackingError):
                self._state = UploadState.load(self._folder)
        return self._state
