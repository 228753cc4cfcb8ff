"""Bring MLflow to the state of a journal. The only module that imports mlflow.

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

import json
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from segresmamba.config import read_config
from segresmamba.config.tracking import server_login
from segresmamba.tracking.groups import join_group, show_group_status
from segresmamba.tracking.journal import (
    JOURNAL_NAME,
    Record,
    read_header,
    read_records,
    warn_if_cut,
)
from segresmamba.tracking.locks import locked
from segresmamba.tracking.mapping import (
    DIGEST_CHARACTERS,
    METRICS_PER_REQUEST,
    PARAM_CHARACTERS,
    PARAMS_PER_REQUEST,
    TAGS_PER_REQUEST,
    Point,
    batches,
    chunks,
    flatten,
    new_points,
    valid_name,
)
from segresmamba.tracking.mlflow_model import send_model
from segresmamba.tracking.protocol import TrackingError
from segresmamba.tracking.refusals import (
    deleted_error,
    error_name,
    first_line,
    is_final,
    refused_error,
)
from segresmamba.tracking.system import FOLDER_NAME as SYSTEM_FOLDER
from segresmamba.tracking.upload_state import (
    LOCK_NAME,
    SQLITE_PREFIX,
    STATE_NAME,
    UploadState,
    open_state,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"
FILE_ATTEMPTS = 3
JOURNAL_TAG = "segresmamba.journal"
RUN_STATUS = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "preempted": "KILLED",
}


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
    state = MlflowSink(folder).push()
    warn_if_cut(folder / JOURNAL_NAME, state.sent_bytes)
    return state


class MlflowSink:
    """MLflow's end of one run folder; keeps the connection from push to push."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._journal = folder / JOURNAL_NAME
        self._client: MlflowClient | None = None
        self._damaged: set[Path] = set()

    def push(self) -> UploadState:
        """Send what is new since the last push; see `sync`."""
        header = read_header(self._journal)
        with locked(self._folder / LOCK_NAME):
            state = UploadState.load(self._folder)
            if state.journal != header.body["id"]:
                state.restart(header.body["id"])
            try:
                self._push(state, header)
                self._push_nodes(state)
            except Exception as error:
                if state.run_id and error_name(error) == "RESOURCE_DOES_NOT_EXIST":
                    logger.warning("run %s is gone from MLflow: rebuilding it", state.run_id)
                    state.restart(state.journal)
                    self._push(state, header)
                    self._push_nodes(state)
                elif is_final(error):
                    raise self._refusal(error, state) from error
                else:
                    raise
            return state

    def _refusal(self, error: Exception, state: UploadState) -> TrackingError:
        """A final error as the user's: the run or its experiment was deleted, or anything else."""
        try:
            deleted = state.run_id and _deleted(self._connect(state), state.run_id, state)
        except Exception:  # a server that refuses everything
            deleted = None
        return deleted or refused_error(error, state)

    def _push(self, state: UploadState, header: Record) -> None:
        for batch in batches(read_records(self._journal, state.sent_bytes)):
            client = self._connect(state)
            if state.run_id is None:
                state.experiment_id = _find_experiment(client, state)
                state.run_id = _find_run(client, state, state.experiment_id, header)
            if state.group and state.parent_id is None:
                assert state.experiment_id is not None  # found with the run
                state.parent_id = join_group(
                    client, state.group, state.experiment_id, state.run_id, self._folder.parent
                )
            self._send(client, batch, state, state.run_id)
            state.sent_bytes = batch[-1].end
            state.save(self._folder)

    def _push_nodes(self, state: UploadState) -> None:
        """Send the samples of the nodes, which each have a journal; see `system`."""
        for path in sorted((self._folder / SYSTEM_FOLDER).glob("*.jsonl")):
            if state.run_id is None or path in self._damaged:
                continue
            try:
                for batch in batches(read_records(path, state.nodes.get(path.stem, 0))):
                    self._send(self._connect(state), batch, state, state.run_id)
                    state.nodes[path.stem] = batch[-1].end
                    state.save(self._folder)
            except TrackingError as error:  # must not hold up the run's own journal
                self._damaged.add(path)
                logger.warning("samples of a node are left out\n%s", error.screen())

    def _connect(self, state: UploadState) -> MlflowClient:
        if self._client is None:
            from mlflow import MlflowClient

            if state.is_database:
                # The first connection makes the tables; two at once trip over each other.
                with locked(_database_lock(state, self._folder)):
                    if state.sqlite_file and not state.sqlite_file.exists():
                        _make_database(state.sqlite_file)
                    self._client = MlflowClient(state.connection_uri)
            else:
                _log_in(state)
                self._client = MlflowClient(state.connection_uri)
        return self._client

    def _send(
        self, client: MlflowClient, batch: list[Record], state: UploadState, run_id: str
    ) -> None:
        from mlflow.entities import Metric, RunTag

        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        points: list[Point] = []
        for record in batch:
            match record.kind:
                case "params":
                    params |= flatten(record.body["values"])
                case "tags":
                    tags |= record.body["values"]
                case "metrics":
                    points += new_points(record, state.last_step)
                case _:
                    self._apply(client, record, state, run_id)
        if params:
            tags |= _send_params(client, run_id, params)
        for some_tags in chunks(list(tags.items()), TAGS_PER_REQUEST):
            client.log_batch(
                run_id, tags=[RunTag(valid_name(key), text) for key, text in some_tags]
            )
        for some_points in chunks(points, METRICS_PER_REQUEST):
            client.log_batch(run_id, metrics=[Metric(*point) for point in some_points])

    def _apply(self, client: MlflowClient, record: Record, state: UploadState, run_id: str) -> None:
        """Send a record that is a request of its own."""
        match record.kind:
            case "artifact":
                self._send_artifact(client, run_id, record)
            case "dataset":
                _send_dataset(client, run_id, record)
            case "model":
                self._send_model(client, state, run_id, record)
            case "status":
                _send_status(client, run_id, record)
                if state.parent_id and state.experiment_id:
                    show_group_status(client, state.parent_id, state.experiment_id)
                if record.body["status"] == "finished":
                    state.last_step.clear()

    def _send_artifact(self, client: MlflowClient, run_id: str, record: Record) -> None:
        """Copy a file or folder."""
        path = self._folder / record.body["path"]
        folder = record.body["folder"] or None
        self._send_file(client, run_id, path, lambda: client.log_artifact(run_id, path, folder))

    def _send_model(
        self, client: MlflowClient, state: UploadState, run_id: str, record: Record
    ) -> None:
        """Log the model, and register it if asked to."""
        path, experiment_id = self._folder / record.body["path"], str(state.experiment_id)

        def send() -> None:
            with warnings.catch_warnings():
                # About its own type hints when it is imported, and about an example it could do
                # without.
                warnings.simplefilter("ignore", UserWarning)
                import mlflow.pyfunc

                # The registry looks a model up through the library's global state.
                mlflow.set_tracking_uri(state.connection_uri)
                send_model(mlflow, client, record, path, experiment_id, run_id)

        self._send_file(client, run_id, path, send)

    def _send_file(
        self, client: MlflowClient, run_id: str, path: Path, send: Callable[[], None]
    ) -> None:
        """Send something large; what is gone, refused or too large must not hold up the rest.

        A server or proxy with a limit may answer 413, or close the connection in mid-upload. The
        latter looks like an outage, so after it a small request tells whether the server is there.
        """
        if not path.exists():
            logger.warning("%s is gone: MLflow does not get it", path)
            return
        for attempt in range(1, FILE_ATTEMPTS + 1):
            try:
                send()
                return
            except Exception as error:
                if not is_final(error):
                    client.get_run(run_id)  # raises if this is an outage
                    if attempt < FILE_ATTEMPTS:
                        continue
                logger.warning("MLflow refuses %s, it stays there: %s", path, first_line(error))
                return


def reading_client(state: UploadState) -> MlflowClient:
    """A client for what is already there: it makes no run, but a database that lacks tables."""
    from mlflow import MlflowClient

    if not state.is_database:
        _log_in(state)
    return MlflowClient(state.connection_uri)


def _log_in(state: UploadState) -> None:
    """Where MLflow looks for the login; in the URI, its error messages would show it."""
    _, user, password = server_login(state.uri)
    if user and password:
        os.environ["MLFLOW_TRACKING_USERNAME"] = user
        os.environ["MLFLOW_TRACKING_PASSWORD"] = password


def _find_experiment(client: MlflowClient, state: UploadState) -> str:
    """The id of the experiment, which is created if need be."""
    experiment = client.get_experiment_by_name(state.experiment)
    if experiment is None:
        artifacts = state.artifacts if state.is_database else None
        try:
            return str(client.create_experiment(state.experiment, artifacts))
        except Exception as error:
            if error_name(error) != "RESOURCE_ALREADY_EXISTS":
                raise
            # Another run of a sweep was faster.
            experiment = client.get_experiment_by_name(state.experiment)
    if experiment.lifecycle_stage == "deleted":
        raise _deleted_experiment(experiment.experiment_id, state)
    return str(experiment.experiment_id)


def _deleted_experiment(experiment_id: str, state: UploadState) -> TrackingError:
    return deleted_error("experiment", f"experiments restore -x {experiment_id}", state)


def _deleted_run(run_id: str, state: UploadState) -> TrackingError:
    return deleted_error("run", f"runs restore --run-id {run_id}", state)


def _deleted(client: MlflowClient, run_id: str, state: UploadState) -> TrackingError | None:
    """What was deleted since the run began: with an experiment go its runs."""
    run = client.get_run(run_id)
    experiment = client.get_experiment(run.info.experiment_id)
    if experiment.lifecycle_stage == "deleted":
        return _deleted_experiment(experiment.experiment_id, state)
    return _deleted_run(run_id, state) if run.info.lifecycle_stage == "deleted" else None


def _find_run(client: MlflowClient, state: UploadState, experiment_id: str, header: Record) -> str:
    """The id of this journal's run, which is created if need be."""
    from mlflow.entities import ViewType

    query = f"tags.`{JOURNAL_TAG}` = '{state.journal}'"
    found = client.search_runs([experiment_id], query, ViewType.ALL, max_results=1)
    if not found:
        run = client.create_run(
            experiment_id,
            start_time=header.time_ms,
            tags={JOURNAL_TAG: state.journal},
            run_name=header.body["name"],
        )
        return str(run.info.run_id)
    if found[0].info.lifecycle_stage == "deleted":
        raise _deleted_run(found[0].info.run_id, state)
    return str(found[0].info.run_id)


def _send_params(client: MlflowClient, run_id: str, params: dict[str, str]) -> dict[str, str]:
    """Send settings; return tags for those that a resumed run changed, which MLflow forbids."""
    from mlflow.entities import Param

    present = client.get_run(run_id).data.params
    new: dict[str, str] = {}
    changed: dict[str, str] = {}
    for key, value in params.items():
        name, text = valid_name(key), value
        if len(value) > PARAM_CHARACTERS:
            text = f"params/{name}.txt"
            client.log_text(run_id, value, text)
        if name not in present:
            new[name] = text
        elif present[name] != text:
            changed[f"changed.{name}"] = text
            logger.warning("%s was %s and is %s since a resume", key, present[name], text)
    for some in chunks(list(new.items()), PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=[Param(name, text) for name, text in some])
    return changed


def _send_dataset(client: MlflowClient, run_id: str, record: Record) -> None:
    """Log the dataset; MLflow knows one by name and digest, so twice is once."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    body = record.body
    dataset = Dataset(
        body["name"],
        body["digest"][:DIGEST_CHARACTERS],
        source_type="local",
        source=json.dumps({"uri": body["source"]}),
        profile=json.dumps(body["profile"]),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "train")])])


def _send_status(client: MlflowClient, run_id: str, record: Record) -> None:
    status = RUN_STATUS[record.body["status"]]
    if status == "RUNNING":
        client.update_run(run_id, status)
    else:
        client.set_terminated(run_id, status, end_time=record.time_ms)


def _database_lock(state: UploadState, folder: Path) -> Path:
    """Lock file of the database: beside an SQLite file, beside the run folder for any other."""
    if state.sqlite_file is None:
        return folder.parent / ".mlflow-database.lock"
    state.sqlite_file.parent.mkdir(parents=True, exist_ok=True)
    return state.sqlite_file.with_name(f".{state.sqlite_file.name}.lock")


def _make_database(path: Path) -> None:
    """Make the tables under another name: half of them, left by a kill, would be of no use."""
    from mlflow import MlflowClient

    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    MlflowClient(f"{SQLITE_PREFIX}{new}")
    new.rename(path)
