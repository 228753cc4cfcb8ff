"""Sweeps and cross-validations in MLflow: one parent run for a group, its runs as children."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segresmamba.storage.locks import locked

GROUP_TAG = "segresmamba.group"
PARENT_TAG = "mlflow.parentRunId"
"""The tag by which MLflow's pages know a child."""
LOCK_NAME = ".mlflow-groups.lock"


def join_group(client: Any, group: str, experiment_id: str, run_id: str, root: Path) -> str:
    """Make a run a child of its group's parent run, which the first one creates.

    Args:
        client: MLflow's client.
        group: Name of the group.
        experiment_id: MLflow's id of the experiment.
        run_id: MLflow's id of the run.
        root: Folder of all runs; a lock in it keeps trials that start together from making two
            parents.

    Returns:
        MLflow's id of the parent.
    """
    with locked(root / LOCK_NAME):
        found = client.search_runs([experiment_id], f"tags.`{GROUP_TAG}` = '{group}'", 1, 1)
        parent = found[0] if found else _create_parent(client, group, experiment_id)
    parent_id = str(parent.info.run_id)
    client.set_tag(run_id, PARENT_TAG, parent_id)
    return parent_id


def show_group_status(client: Any, parent_id: str, experiment_id: str) -> None:
    """A group runs as long as one of its runs does; one that was deleted shows nothing."""
    if client.get_run(parent_id).info.lifecycle_stage == "deleted":
        return
    running = f"tags.`{PARENT_TAG}` = '{parent_id}' and attributes.status = 'RUNNING'"
    if client.search_runs([experiment_id], running, max_results=1):
        client.update_run(parent_id, "RUNNING")
    else:
        client.set_terminated(parent_id, "FINISHED")


def _create_parent(client: Any, group: str, experiment_id: str) -> Any:
    return client.create_run(experiment_id, tags={GROUP_TAG: group}, run_name=group)
