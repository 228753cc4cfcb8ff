"""Sends the records of a journal to MLflow, in requests that may all be repeated."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from segresmamba.tracking.journal import JournalRecord
from segresmamba.tracking.mapping import (
    DIGEST_CHARACTERS,
    METRICS_PER_REQUEST,
    PARAM_CHARACTERS,
    PARAMS_PER_REQUEST,
    TAGS_PER_REQUEST,
    MetricPoint,
    chunks,
    flatten,
    new_points,
    valid_name,
)
from segresmamba.tracking.mlflow.client import first_line, is_final, library
from segresmamba.tracking.mlflow.first_look import STATE_TAG
from segresmamba.tracking.mlflow.model import send_model
from segresmamba.tracking.mlflow.runs import show_group_status
from segresmamba.tracking.mlflow.state import UploadState

logger = logging.getLogger(__name__)

FILE_ATTEMPTS = 3
# Prefix of a tag with the new value of a setting that a resumed run changed.
CHANGED = "changed."
# Artifact with a value that is longer than MLflow allows; the param has the path of the artifact.
LONG_PARAM = "params/{}.txt"
# MLflow has no status for a preempted run; KILLED is the closest.
RUN_STATUS = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "preempted": "KILLED",
}


def send_records(client: Any, batch: list[JournalRecord], state: UploadState, folder: Path) -> None:
    """Send consecutive records.

    Args:
        client: MLflow's client.
        batch: The records.
        state: The state of a run that is in MLflow. Its `last_step` is updated.
        folder: The run folder, from which files are sent.
    """
    run_id = str(state.run_id)
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    points: list[MetricPoint] = []
    for record in batch:
        match record.kind:
            case "params":
                params |= flatten(record.body["values"])
            case "tags":
                tags |= record.body["values"]
            case "metrics":
                points += new_points(record, state.last_step)
            case "artifact":
                place = record.body["folder"] or None
                send_file(client, run_id, folder, record.body["path"], place)
            case "dataset":
                _send_dataset(client, run_id, record)
            case "model":
                source = record.body["path"]
                send = partial(send_model, client, record, folder / source, state)
                _send_large(client, run_id, folder, source, send)
            case "status":
                tags[STATE_TAG] = record.body["status"]
                _send_status(client, record, state)
    if params:
        tags |= _send_params(client, run_id, params)
    entities = library().entities
    for some_tags in chunks(list(tags.items()), TAGS_PER_REQUEST):
        new_tags = [entities.RunTag(valid_name(key), text) for key, text in some_tags]
        client.log_batch(run_id, tags=new_tags)
    for some_points in chunks(points, METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=[entities.Metric(*point) for point in some_points])


def send_file(client: Any, run_id: str, folder: Path, name: str, place: str | None) -> None:
    """Copy a file or folder of a run folder to the run's artifacts, below `place` if it is set."""
    send = partial(client.log_artifact, run_id, folder / name, place)
    _send_large(client, run_id, folder, name, send)


def leads_outside(folder: Path, name: str) -> str | None:
    """What leads out of a run folder, or is no file: its name or a link below it; None if nothing.

    A run that was received from somebody else may name any file of the user who sends it.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return name
    try:
        inside = folder.resolve()
        for found in (folder / path, *(folder / path).rglob("*")):
            with suppress(FileNotFoundError, NotADirectoryError):
                found.stat()  # an OSError for links that lead to each other
            is_kept = found.is_file() or found.is_dir() or not found.exists()
            if not (is_kept and found.resolve().is_relative_to(inside)):
                return str(found.relative_to(folder))
    except OSError:
        return name
    return None


def _send_large(
    client: Any, run_id: str, folder: Path, name: str, send: Callable[[], None]
) -> None:
    """Send something large, or warn: a file that is missing or refused must not stop the rest.

    A server or proxy with a limit may answer 413, or close the connection during the upload. The
    latter looks like an outage, so a small request then tells whether the server is there.
    """
    path = folder / name
    if outside := leads_outside(folder, name):
        logger.warning(
            "MLflow does not get %s: %s leads out of the run folder %s", name, outside, folder
        )
        return
    if not path.exists():
        logger.warning("%s does not exist any more: MLflow does not get it", path)
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
            logger.warning("MLflow refuses %s and does not get it: %s", path, first_line(error))
            return


def _send_params(client: Any, run_id: str, params: dict[str, str]) -> dict[str, str]:
    """Send settings.

    Returns:
        Tags for the settings that a resumed run changed: MLflow's params cannot be changed.
    """
    data = client.get_run(run_id).data
    new: dict[str, str] = {}
    changed: dict[str, str] = {}
    for key, value in params.items():
        name, text = valid_name(key), value
        if len(value) > PARAM_CHARACTERS:
            text = LONG_PARAM.format(name)
            client.log_text(run_id, value, text)
        if name not in data.params:
            new[name] = text
            continue
        tag = f"{CHANGED}{name}"
        before = data.tags.get(tag, data.params[name])
        if before != text:
            changed[tag] = text
            logger.warning("the resumed run changed %s from %s to %s", key, before, text)
    param = library().entities.Param
    for some in chunks(list(new.items()), PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=[param(name, text) for name, text in some])
    return changed


def _send_dataset(client: Any, run_id: str, record: JournalRecord) -> None:
    """Log the dataset. MLflow identifies it by name and digest, so a second time adds nothing."""
    entities, body = library().entities, record.body
    dataset = entities.Dataset(
        body["name"],
        body["digest"][:DIGEST_CHARACTERS],
        source_type="local",
        source=json.dumps({"uri": body["source"]}),
        profile=json.dumps(body["profile"]),
    )
    context = entities.InputTag("mlflow.data.context", "train")
    client.log_inputs(run_id, [entities.DatasetInput(dataset, [context])])


def _send_status(client: Any, record: JournalRecord, state: UploadState) -> None:
    status = RUN_STATUS[record.body["status"]]
    if status == "RUNNING":
        client.update_run(state.run_id, status)
    else:
        client.set_terminated(state.run_id, status, end_time=record.time_ms)
    if state.parent_id and state.experiment_id:
        show_group_status(client, state.parent_id, state.experiment_id)
    if record.body["status"] == "finished":
        state.last_step.clear()  # a later evaluation measures at the last step again
