"""Sweeps and folds in MLflow, on an SQLite store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segresmamba.config import TrackingConfig, load_config
from segresmamba.errors import ConfigError
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking import sync
from segresmamba.tracking.journal import Journal
from segresmamba.tracking.mlflow.runs import GROUP_TAG, PARENT_TAG
from segresmamba.tracking.mlflow.state import UploadState, open_state

SWEEP = TrackingConfig(group="lr sweep")


def client(run: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(UploadState.load(run).uri)


def parents(run: Path) -> list[Any]:
    experiment = UploadState.load(run).experiment_id
    found: list[Any] = client(run).search_runs([experiment], f"tags.`{GROUP_TAG}` LIKE '%'")
    return found


@pytest.fixture
def trial(root: Path) -> Callable[[str, str], Path]:
    """Records a trial in the state given and brings MLflow to it."""

    def record(name: str, status: str) -> Path:
        folder = root / name
        folder.mkdir(exist_ok=True)
        journal = Journal(RunFolder(folder).journal, name=name)
        journal.append("status", status=status)
        journal.close()
        open_state(folder, SWEEP, root).save(folder)
        sync(folder)
        return folder

    return record


def test_the_runs_of_a_group_are_children_of_one_parent(trial: Callable[..., Path]) -> None:
    folders = [trial(name, "finished") for name in ("a", "b", "c")]
    (parent,) = parents(folders[0])
    assert parent.info.run_name == "lr sweep"
    for folder in folders:
        run = client(folder).get_run(UploadState.load(folder).run_id)
        assert run.data.tags[PARENT_TAG] == parent.info.run_id


def test_a_group_runs_as_long_as_one_of_its_runs(trial: Callable[..., Path]) -> None:
    folder = trial("a", "running")
    trial("b", "running")
    trial("a", "finished")
    assert parents(folder)[0].info.status == "RUNNING"
    trial("b", "failed")
    assert parents(folder)[0].info.status == "FINISHED"
    trial("b", "running")  # requeued
    assert parents(folder)[0].info.status == "RUNNING"


def test_a_deleted_parent_holds_no_trial_up(trial: Callable[..., Path]) -> None:
    folder = trial("a", "running")
    (parent,) = parents(folder)
    client(folder).delete_run(parent.info.run_id)
    trial("a", "finished")
    assert client(folder).get_run(UploadState.load(folder).run_id).info.status == "FINISHED"
    assert parents(folder) == []  # nobody asked for another


def test_a_repeated_or_rebuilt_sync_makes_no_second_parent(trial: Callable[..., Path]) -> None:
    folder = trial("a", "finished")
    (folder / "mlflow.json").unlink()
    open_state(folder, SWEEP, folder.parent).save(folder)
    sync(folder)
    sync(folder)
    assert len(parents(folder)) == 1


def test_a_run_moved_to_another_group_changes_its_parent(trial: Callable[..., Path]) -> None:
    folder = trial("a", "finished")
    open_state(folder, TrackingConfig(group="folds"), folder.parent).save(folder)
    journal = Journal(RunFolder(folder).journal, name="a")
    journal.append("tags", values={"a": "b"})
    journal.close()
    state = sync(folder)
    names = {parent.info.run_id: parent.info.run_name for parent in parents(folder)}
    run = client(folder).get_run(state.run_id)
    assert names[run.data.tags[PARENT_TAG]] == "folds"


def test_a_group_name_that_cannot_be_searched_for_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        load_config(["tracking.group='it\\'s'"])
    assert error.value.where == "tracking.group"
