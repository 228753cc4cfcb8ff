"""Bring MLflow to the state of a journal.

Everything arrives exactly once, however often it is sent and wherever a crash falls:

- The run carries the journal's id as a tag, and is looked up by it before one is created.
- The cursor in mlflow.json moves after a batch has arrived, so a crash between the two sends that
  batch again. MLflow's primary key of a metric is (run, key, timestamp, step, value), and all of
  them come from the journal, so the second time changes nothing; nor do tags and artifacts.
- Of a metric that a resumed run measured again at a step, the first value is sent: MLflow cannot
  take back a value. The rule holds for a rebuild too, so both give the same curves. A run that has
  finished trains no step again; what is measured after that, by another evaluation, is sent.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from segresmamba.config import read_config
from segresmamba.storage.locks import locked
from segresmamba.tracking.energy.ledger import LEDGER_NAME
from segresmamba.tracking.energy.system import FOLDER_NAME as SYSTEM_FOLDER
from segresmamba.tracking.groups import join_group
from segresmamba.tracking.journal import (
    JOURNAL_NAME,
    JournalRecord,
    read_header,
    read_records,
    warn_if_cut,
)
from segresmamba.tracking.mapping import batches
from segresmamba.tracking.mlflow.client import connect
from segresmamba.tracking.mlflow.errors import error_name, is_final, refused_error
from segresmamba.tracking.mlflow.records import send_file, send_records
from segresmamba.tracking.mlflow.runs import find_experiment, find_run, refuse_deleted
from segresmamba.tracking.mlflow.state import LOCK_NAME, STATE_NAME, UploadState, open_state
from segresmamba.tracking.protocol import TrackingError

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"


def sync(folder: Path) -> UploadState:
    """Send MLflow what it lacks of a run's journal.

    Where it goes stands in mlflow.json; without that file, in the run's configuration. If that
    names no MLflow, it is the one that `tracking_uri` finds now: a server may have come or gone.

    Args:
        folder: The run folder.

    Returns:
        The state that MLflow has now.

    Raises:
        ConfigError: If neither file says where to send it.
        TrackingError: If the journal cannot be read, or MLflow refuses it for good.
        Exception: Whatever MLflow raises while it cannot be reached.
    """
    is_known = (folder / STATE_NAME).exists()
    if not is_known or (folder / CONFIG_NAME).exists():
        config = read_config(folder / CONFIG_NAME)
        if not is_known or config.tracking.uri is None:
            open_state(folder, config.tracking, folder.parent).save(folder)
    state = MlflowSink(folder).push(last=True)
    warn_if_cut(folder / JOURNAL_NAME, state.sent_bytes)
    return state


class MlflowSink:
    """MLflow's end of one run folder; keeps the connection from push to push."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._journal = folder / JOURNAL_NAME
        self._client: Any = None
        self._damaged: set[Path] = set()

    def push(self, *, last: bool = False) -> UploadState:
        """Send what is new since the last push.

        Args:
            last: Whether no more is recorded for now: the energy ledger goes with it.

        Raises:
            TrackingError: If the journal cannot be read, or MLflow refuses it for good.
            Exception: Whatever MLflow raises while it cannot be reached.
        """
        header = read_header(self._journal)
        with locked(self._folder / LOCK_NAME):
            state = UploadState.load(self._folder)
            if state.journal != header.body["id"]:
                state.restart(header.body["id"])
            try:
                if state.run_id and self._client is None:
                    # Even if there is nothing new to send: a database may have been replaced.
                    refuse_deleted(self._connect(state), state)
                self._push(state, header, last=last)
            except Exception as error:
                if state.run_id and error_name(error) == "RESOURCE_DOES_NOT_EXIST":
                    logger.warning("run %s is gone from MLflow: rebuilding it", state.run_id)
                    state.restart(state.journal)
                    self._push(state, header, last=last)
                elif is_final(error):
                    raise self._refusal(error, state) from error
                else:
                    raise
            return state

    def _refusal(self, error: Exception, state: UploadState) -> TrackingError:
        """A final error as the user's: the run or its experiment was deleted, or anything else."""
        try:
            refuse_deleted(self._connect(state), state)
        except TrackingError as cause:
            return cause
        except Exception:  # a server that refuses everything
            logger.debug("nor does MLflow say whether the run was deleted", exc_info=True)
        return refused_error(error, state)

    def _push(self, state: UploadState, header: JournalRecord, *, last: bool) -> None:
        self._push_run(state, header)
        self._push_nodes(state)
        ledger = self._folder / LEDGER_NAME
        if last and state.run_id and ledger.exists():
            send_file(self._connect(state), state.run_id, ledger, None)

    def _push_run(self, state: UploadState, header: JournalRecord) -> None:
        for batch in batches(read_records(self._journal, state.sent_bytes)):
            client = self._connect(state)
            if state.run_id is None:
                state.experiment_id = find_experiment(client, state)
                state.run_id = find_run(client, state, state.experiment_id, header)
            if state.group and state.parent_id is None:
                assert state.experiment_id is not None  # found with the run
                state.parent_id = join_group(
                    client, state.group, state.experiment_id, state.run_id, self._folder.parent
                )
            send_records(client, batch, state, self._folder)
            state.sent_bytes = batch[-1].end
            state.save(self._folder)

    def _push_nodes(self, state: UploadState) -> None:
        """Send the samples of the nodes, which each have a journal; see `system`."""
        for path in sorted((self._folder / SYSTEM_FOLDER).glob("*.jsonl")):
            if state.run_id is None or path in self._damaged:
                continue
            try:
                for batch in batches(read_records(path, state.nodes.get(path.stem, 0))):
                    send_records(self._connect(state), batch, state, self._folder)
                    state.nodes[path.stem] = batch[-1].end
                    state.save(self._folder)
            except TrackingError as error:  # must not hold up the run's own journal
                self._damaged.add(path)
                logger.warning("samples of a node are left out\n%s", error.screen())

    def _connect(self, state: UploadState) -> Any:
        if self._client is None:
            self._client = connect(state, self._folder)
        return self._client
