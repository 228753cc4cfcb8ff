"""Runs in MLflow: that of a journal, and the parent run of a group.

The run of a journal carries the journal's id as a tag, and is looked up by it before it is created.
A group is a sweep or a cross-validation: one parent run with the runs of the group as children.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segresmamba.storage.locks import locked
from segresmamba.tracking.journal import JournalRecord
from segresmamba.tracking.mlflow.client import error_name, library
from segresmamba.tracking.mlflow.first_look import prepare_experiment
from segresmamba.tracking.mlflow.state import UploadState
from segresmamba.tracking.protocol import TrackingError

JOURNAL_TAG = "segresmamba.journal"
ATTEMPT_TAG = "segresmamba.attempt"
"""The number of the attempt that a run shows; the first attempt has no such tag."""
SUPERSEDED_TAG = "segresmamba.superseded"
"""Why a run no longer shows the weights that exist."""
GROUP_TAG = "segresmamba.group"
PARENT_TAG = "mlflow.parentRunId"
"""MLflow's pages show a run with this tag as a child."""
GROUPS_LOCK_NAME = ".mlflow-groups.lock"
DELETED = "deleted"


def find_experiment(client: Any, state: UploadState) -> str:
    """The id of the experiment, which is created if need be.

    Raises:
        TrackingError: If it was deleted.
    """
    experiment = client.get_experiment_by_name(state.experiment)
    if experiment is None:
        # A server decides where artifacts lie; for a database it is the client that does.
        artifacts = state.artifacts if state.is_database else None
        try:
            client.create_experiment(state.experiment, artifacts)
        except Exception as error:
            if error_name(error) != "RESOURCE_ALREADY_EXISTS":
                raise
            # Another run of a sweep has just created it.
        experiment = client.get_experiment_by_name(state.experiment)
    if experiment.lifecycle_stage == DELETED:
        raise _deleted("experiment", f"-x {experiment.experiment_id}", state)
    prepare_experiment(client, experiment)
    return str(experiment.experiment_id)


def find_run(client: Any, state: UploadState, experiment_id: str, header: JournalRecord) -> str:
    """The id of the run of the journal that begins with `header`, created if need be.

    Each attempt has a run of its own, and the runs of earlier ones become its children.

    Raises:
        TrackingError: If it was deleted.
    """
    query = f"tags.`{JOURNAL_TAG}` = '{state.journal}'"
    everything = library().entities.ViewType.ALL  # a deleted run is reported, not created again
    runs = client.search_runs([experiment_id], query, everything)
    number = str(len(state.attempts) + 1)
    found = [run for run in runs if run.data.tags.get(ATTEMPT_TAG, "1") == number]
    if found and found[0].info.lifecycle_stage == DELETED:
        raise _deleted("run", f"--run-id {found[0].info.run_id}", state)
    run = (
        found[0]
        if found
        else client.create_run(
            experiment_id,
            start_time=header.time_ms,
            tags={JOURNAL_TAG: state.journal} | ({ATTEMPT_TAG: number} if state.attempts else {}),
            run_name=header.body["name"],
        )
    )
    run_id = str(run.info.run_id)
    for other in runs:
        if SUPERSEDED_TAG in other.data.tags and other.info.lifecycle_stage != DELETED:
            client.set_tag(other.info.run_id, PARENT_TAG, run_id)
    return run_id


def set_apart(client: Any, state: UploadState, header: JournalRecord, step: int) -> None:
    """Show the run in MLflow as an earlier attempt than one that went on from `step`."""
    if state.run_id is None:
        return
    number = len(state.attempts) + 1
    text = f"attempt {number + 1} goes on from step {step}"
    client.set_tag(state.run_id, SUPERSEDED_TAG, text)
    client.update_run(state.run_id, name=f"{header.body['name']}, attempt {number}")
    if client.get_run(state.run_id).info.status == "RUNNING":
        client.set_terminated(state.run_id, "KILLED")


def refuse_deleted(client: Any, state: UploadState) -> None:
    """Check that nobody has deleted the run in MLflow; a run that is not there yet passes.

    Raises:
        TrackingError: If the run or its experiment was deleted.
    """
    if state.run_id is None:
        return
    run = client.get_run(state.run_id)
    experiment = client.get_experiment(run.info.experiment_id)
    if experiment.lifecycle_stage == DELETED:
        raise _deleted("experiment", f"-x {experiment.experiment_id}", state)
    if run.info.lifecycle_stage == DELETED:
        raise _deleted("run", f"--run-id {state.run_id}", state)


def join_group(client: Any, group: str, experiment_id: str, run_id: str, root: Path) -> str:
    """Make a run a child of its group's parent run, which the first run of the group creates.

    Args:
        client: MLflow's client.
        group: Name of the group.
        experiment_id: MLflow's id of the experiment.
        run_id: MLflow's id of the run.
        root: Folder of all runs. A lock in it keeps runs that start together from creating two
            parents.

    Returns:
        MLflow's id of the parent.
    """
    with locked(root / GROUPS_LOCK_NAME):
        found = client.search_runs([experiment_id], f"tags.`{GROUP_TAG}` = '{group}'", 1, 1)
        tags = {GROUP_TAG: group}
        parent = found[0] if found else client.create_run(experiment_id, None, tags, group)
    parent_id = str(parent.info.run_id)
    client.set_tag(run_id, PARENT_TAG, parent_id)
    return parent_id


def show_group_status(client: Any, parent_id: str, experiment_id: str) -> None:
    """Show a group as running while one of its runs is; a deleted parent stays as it is."""
    if client.get_run(parent_id).info.lifecycle_stage == DELETED:
        return
    running = f"tags.`{PARENT_TAG}` = '{parent_id}' and attributes.status = 'RUNNING'"
    if client.search_runs([experiment_id], running, max_results=1):
        client.update_run(parent_id, "RUNNING")
    else:
        client.set_terminated(parent_id, "FINISHED")


def _deleted(what: str, restore: str, state: UploadState) -> TrackingError:
    """The error for an experiment or a run that was deleted, with the command that restores it."""
    return TrackingError(
        f"the {what} was deleted in MLflow",
        where=state.shown_uri,
        got=state.experiment,
        remedy=f"restore it: MLFLOW_TRACKING_URI={state.shown_uri} mlflow {what}s restore "
        f"{restore}, then run: segresmamba sync RUN_FOLDER; or set another tracking.experiment",
    )
