"""Brings MLflow to the state of a journal.

Everything arrives exactly once, however often it is sent and wherever a crash happens:

- The run carries the journal's id as a tag, and is looked up by it before it is created.
- The cursor in mlflow.json moves after a batch has arrived, so a crash between the two sends that
  batch again. MLflow's primary key of a metric is (run, key, timestamp, step, value), and all of
  them come from the journal, so the second time changes nothing. The same holds for tags and
  artifacts.
- If a resumed run measures a metric again at a step, only the first value is sent, because MLflow
  cannot take back a value. A rebuild from the journal follows the same rule and gives the same
  curves. A finished run trains no step again, so what another evaluation measures then is sent.
- Where another attempt begins (see `attempts`), a new run takes the place of the one so far, which
  becomes its child. The journal is sent again from its start, without what is of the earlier one.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from segresmamba.config import read_config
from segresmamba.storage.locks import locked
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking.attempts import attempts_first, is_superseded
from segresmamba.tracking.energy.system import FOLDER_NAME as SYSTEM_FOLDER
from segresmamba.tracking.journal import JournalRecord, read_header, read_records, warn_if_cut
from segresmamba.tracking.mapping import batches
from segresmamba.tracking.mlflow.client import connect, error_name, first_line, is_final
from segresmamba.tracking.mlflow.records import send_file, send_records
from segresmamba.tracking.mlflow.runs import (
    find_experiment,
    find_run,
    join_group,
    refuse_deleted,
    set_apart,
)
from segresmamba.tracking.mlflow.state import LOCK_NAME, UploadState, open_state
from segresmamba.tracking.protocol import TrackingError

logger = logging.getLogger(__name__)


def sync(folder: Path) -> UploadState:
    """Send MLflow what it lacks of a run's journal.

    mlflow.json says where to; if it is missing or torn, the run's configuration does. If that sets
    no tracking.uri, `tracking_uri` looks again now: a server may have started or ended.

    Args:
        folder: The run folder.

    Returns:
        The state after sending.

    Raises:
        ConfigError: If neither file says where to send it.
        TrackingError: If the journal cannot be read, or MLflow refuses it for good.
        Exception: Whatever MLflow raises while it cannot be reached.
    """
    run = RunFolder(folder)
    is_known = True
    try:
        UploadState.load(folder)
    except TrackingError:
        is_known = False
    if not is_known or run.config.exists():
        config = read_config(run.config)
        if not is_known or config.tracking.uri is None:
            open_state(folder, config.tracking, folder.parent).save(folder)
    state = MlflowSink(folder).push(last=True)
    warn_if_cut(run.journal, state.sent_bytes)
    return state


class MlflowSink:
    """Sends one run folder to MLflow, and keeps the connection between pushes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._run = RunFolder(folder)
        self._client: Any = None
        self._damaged: set[Path] = set()

    def push(self, *, last: bool = False) -> UploadState:
        """Send what is new since the last push.

        Args:
            last: Whether the run has ended; the energy ledger is then sent too.

        Raises:
            TrackingError: If the journal cannot be read, or MLflow refuses it for good.
            Exception: Whatever MLflow raises while it cannot be reached.
        """
        header = read_header(self._run.journal)
        with locked(self._folder / LOCK_NAME):
            state = UploadState.load(self._folder)
            # A journal that has lost its id goes on under the one that MLflow knows.
            lost = state.journal or f"{self._folder.name}-{header.time_ms}"
            if state.journal != (journal_id := header.body["id"] or lost):
                state.restart(journal_id)
            try:
                if state.run_id and self._client is None:
                    # Also when there is nothing new to send: somebody may have deleted the run, or
                    # replaced the database.
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
        """The user's error for a final error of MLflow, which a deleted run may have caused."""
        try:
            refuse_deleted(self._connect(state), state)
        except TrackingError as cause:
            return cause
        except Exception:  # the server refuses everything
            logger.debug("MLflow does not say whether the run was deleted", exc_info=True)
        return TrackingError(
            "MLflow refuses this run",
            where=state.shown_uri,
            got=first_line(error),
            remedy="correct the cause, then run: segresmamba sync RUN_FOLDER",
        )

    def _push(self, state: UploadState, header: JournalRecord, *, last: bool) -> None:
        records = read_records(self._run.journal, state.sent_bytes)
        # What a later start records first may turn out to belong to another attempt.
        wait = state.run_id is not None and not last
        for batch in batches(attempts_first(records, state.sent_bytes, wait=wait)):
            client = self._connect(state)
            if batch[0].kind == "attempt":
                attempt = (batch[0].number or 0, batch[0].body["step"])
                if attempt not in state.attempts:
                    set_apart(client, state, header, attempt[1])
                    state.restart(state.journal, [*state.attempts, attempt])
                    state.save(self._folder)
                    self._push(state, header, last=last)
                    return
            if state.run_id is None:
                state.experiment_id = find_experiment(client, state)
                state.run_id = find_run(client, state, state.experiment_id, header)
            if state.group and state.parent_id is None:
                assert state.experiment_id is not None  # found with the run
                state.parent_id = join_group(
                    client, state.group, state.experiment_id, state.run_id, self._folder.parent
                )
            current = [  # not of an earlier attempt than that which the run shows
                record
                for record in batch
                if not any(
                    (record.number or 0) < number and is_superseded(record, step)
                    for number, step in state.attempts
                )
            ]
            send_records(client, current, state, self._folder)
            state.sent_bytes = batch[-1].end
            state.save(self._folder)
        if state.last_step or last:
            # MLflow's comparison starts with the metric that came first, which is one of training.
            self._push_nodes(state)
        if last and state.run_id and self._run.emissions.exists():
            name = self._run.emissions.name
            send_file(self._connect(state), state.run_id, self._folder, name, None)

    def _push_nodes(self, state: UploadState) -> None:
        """Send the samples of the nodes, each of which has its own journal, see `energy.system`."""
        for path in sorted((self._folder / SYSTEM_FOLDER).glob("*.jsonl")):
            # Samples wait for the run, which is created with the first record of its own journal.
            if state.run_id is None or path in self._damaged:
                continue
            try:
                for batch in batches(read_records(path, state.nodes.get(path.stem, 0))):
                    send_records(self._connect(state), batch, state, self._folder)
                    state.nodes[path.stem] = batch[-1].end
                    state.save(self._folder)
            except TrackingError as error:  # it must not stop the upload of the run's own journal
                self._damaged.add(path)
                logger.warning("the samples of a node are not sent\n%s", error.screen())

    def _connect(self, state: UploadState) -> Any:
        # At the first use: the import of MLflow takes seconds.
        if self._client is None:
            self._client = connect(state, self._folder)
        return self._client
