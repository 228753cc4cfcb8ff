"""A failure on the MLflow run."""

import sqlite3
from pathlib import Path

import pytest

from launch.failures import Failure
from launch.report import report_failure
from segresmamba.config import load_config, run_folder
from segresmamba.tracking import open_tracker

FAILURE = Failure(3, 1.0, 1, "Traceback (most recent call last)\nKeyError: 7")


@pytest.mark.slow
def test_the_run_in_mlflow_carries_the_traceback(tmp_path: Path) -> None:
    config = load_config([f"run.root={tmp_path}", "run.name=mine", "tracking.emissions=false"])
    folder = run_folder(config)
    tracker = open_tracker(folder, config.tracking, root=tmp_path, run_name="mine")
    tracker.metrics({"train/loss": 1.0}, step=1)
    tracker.close("failed")
    report_failure(config, FAILURE)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        ((run_id, status),) = database.execute("SELECT run_uuid, status FROM runs").fetchall()
        tags = dict(database.execute("SELECT key, value FROM tags").fetchall())
    database.close()
    assert status == "FAILED"
    assert tags["failure"] == "rank 3: KeyError: 7"
    (artifact,) = tmp_path.glob(f"mlartifacts/{run_id}/artifacts/failure.txt")
    assert artifact.read_text() == "rank 3\n" + FAILURE.text + "\n"


def test_a_run_that_never_began_gets_only_the_file(tmp_path: Path) -> None:
    config = load_config([f"run.root={tmp_path}", "run.name=mine"])
    run_folder(config).mkdir()
    report_failure(config, FAILURE)
    assert [path.name for path in run_folder(config).iterdir()] == ["failure.txt"]


def test_a_folder_that_is_full_does_not_hide_the_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config([f"run.root={tmp_path}/absent", "run.name=mine"])
    report_failure(config, FAILURE)
    assert "the failure is not on the MLflow run" in caplog.text
