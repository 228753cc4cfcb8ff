"""Which run of MLflow is a journal's: found by the journal's id, made if there is none."""

from __future__ import annotations

from typing import Any

from segresmamba.tracking.journal import JournalRecord
from segresmamba.tracking.mlflow.client import library
from segresmamba.tracking.mlflow.errors import deleted_error, error_name
from segresmamba.tracking.mlflow.state import UploadState
from segresmamba.tracking.protocol import TrackingError

JOURNAL_TAG = "segresmamba.journal"
DELETED = "deleted"


def find_experiment(client: Any, state: UploadState) -> str:
    """The id of the experiment, which is created if need be.

    Raises:
        TrackingError: If it was deleted.
    """
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
    if experiment.lifecycle_stage == DELETED:
        raise _deleted_experiment(experiment.experiment_id, state)
    return str(experiment.experiment_id)


def find_run(client: Any, state: UploadState, experiment_id: str, header: JournalRecord) -> str:
    """The id of the run of the journal that begins with `header`, created if need be.

    Raises:
        TrackingError: If it was deleted.
    """
    query = f"tags.`{JOURNAL_TAG}` = '{state.journal}'"
    everything = library().entities.ViewType.ALL
    found = client.search_runs([experiment_id], query, everything, max_results=1)
    if not found:
        run = client.create_run(
            experiment_id,
            start_time=header.time_ms,
            tags={JOURNAL_TAG: state.journal},
            run_name=header.body["name"],
        )
        return str(run.info.run_id)
    if found[0].info.lifecycle_stage == DELETED:
        raise _deleted_run(found[0].info.run_id, state)
    return str(found[0].info.run_id)


def refuse_deleted(client: Any, state: UploadState) -> None:
    """Learn that the run is still there, as far as MLflow knew it.

    Raises:
        TrackingError: If the run was deleted since, or its experiment, with which go its runs.
    """
    if state.run_id is None:
        return
    run = client.get_run(state.run_id)
    experiment = client.get_experiment(run.info.experiment_id)
    if experiment.lifecycle_stage == DELETED:
        raise _deleted_experiment(experiment.experiment_id, state)
    if run.info.lifecycle_stage == DELETED:
        raise _deleted_run(state.run_id, state)


def _deleted_experiment(experiment_id: str, state: UploadState) -> TrackingError:
    return deleted_error("experiment", f"experiments restore -x {experiment_id}", state)


def _deleted_run(run_id: str, state: UploadState) -> TrackingError:
    return deleted_error("run", f"runs restore --run-id {run_id}", state)
