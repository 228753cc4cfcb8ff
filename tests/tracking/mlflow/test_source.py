from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from segresmamba.config import TrackingConfig
from segresmamba.tracking import MlflowSource, TrackingError, read_history, sync
from segresmamba.tracking.mlflow.state import open_state
from tests.report.recorded import record_run


def uri(root: Path) -> str:
    return f"sqlite:///{root / 'mlflow.db'}"


def send(root: Path, folder: Path) -> None:
    open_state(folder, TrackingConfig(experiment="mine", group="sweep"), root).save(folder)
    sync(folder)


def test_mlflow_gives_back_what_the_folder_holds(root: Path, tmp_path: Path) -> None:
    folders = [
        record_run(root, "one", cases={"a": 0.9, "b": 0.8}),
        record_run(root, "two", status="preempted", energy_kwh=None),
    ]
    for folder in folders:
        send(root, folder)
    source = MlflowSource(uri(root))
    assert "mine" in source.experiments()
    found = source.histories("mine", tmp_path / "downloads")  # the parent of the group is no run
    assert [history.name for history in found] == ["one", "two"]
    for history, folder in zip(found, folders, strict=True):
        recorded = read_history(folder)
        assert {name: path.read_bytes() for name, path in history.files.items()} == {
            name: path.read_bytes() for name, path in recorded.files.items()
        }
        assert history.where.startswith(uri(root))
        same = {"where": "", "files": {}, "tags": {}}
        assert recorded.tags.items() <= history.tags.items()
        assert replace(history, **same) == replace(recorded, **same)


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="no MLflow database"):
        MlflowSource(uri(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_is_an_error_of_the_user() -> None:
    with pytest.raises(TrackingError, match="MLflow does not answer"):
        MlflowSource("http://127.0.0.1:9").experiments()
