"""Failures among a job's logs, in the run's folder and on the MLflow run."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from launch.failures import Failure, first_failure, in_one_line, report_failure, write_failure
from segresmamba.config import load_config, run_folder
from segresmamba.errors import CheckpointError
from segresmamba.tracking import JournalHeldError, open_tracker, sync

FAILURE = Failure(3, 1.0, 1, "Traceback (most recent call last)\nKeyError: 7")


def test_the_earliest_failure_of_the_job_is_the_cause(tmp_path: Path) -> None:
    for rank, time_s in ((0, 30.0), (1, 10.0), (10, 20.0)):
        write_failure(Failure(rank, time_s, 1, f"rank {rank}"), tmp_path, "77")
    write_failure(Failure(0, 1.0, 1, "another job"), tmp_path, "7")
    assert first_failure(tmp_path, "77") == Failure(1, 10.0, 1, "rank 1")


def test_a_job_without_failures_has_no_first(tmp_path: Path) -> None:
    assert first_failure(tmp_path, "77") is None


def test_only_the_whole_record_is_left(tmp_path: Path) -> None:
    write_failure(Failure(3, 1.0, 1, "ü"), tmp_path, "77")
    assert [path.name for path in tmp_path.iterdir()] == ["77_3_failure.json"]
    assert first_failure(tmp_path, "77") == Failure(3, 1.0, 1, "ü")


def test_a_run_that_goes_on_in_another_process_has_not_failed(tmp_path: Path) -> None:
    held = JournalHeldError("another process is writing", where="j", got="n2", remedy="wait")
    config = load_config([f"run.root={tmp_path}", "run.name=a"])
    run_folder(config).mkdir()
    report_failure(config, Failure.from_error(held, 0))
    assert not list(run_folder(config).iterdir())


def test_a_mistake_of_the_user_is_its_screen_and_all_else_its_traceback() -> None:
    mistake = CheckpointError("another network", where="step-1", got="unet", remedy="start anew")
    assert Failure.from_error(mistake, 2).exit_code == 2
    assert Failure.from_error(mistake, 2).text == mistake.screen()
    try:
        raise ZeroDivisionError("oops")
    except ZeroDivisionError as error:
        failure = Failure.from_error(error, 0)
    assert failure.exit_code == 1
    assert failure.text.startswith("Traceback")
    assert failure.text.endswith("ZeroDivisionError: oops")


def test_one_line_says_what_went_wrong_and_not_the_remedy() -> None:
    mistake = CheckpointError("another network", where="step-1", got="unet", remedy="start anew")
    assert in_one_line(mistake.screen()) == "error: another network"
    assert (
        in_one_line("a log\nerror: an older one\n" + mistake.screen()) == "error: another network"
    )
    assert in_one_line(mistake.screen() + "\n" + FAILURE.text) == "KeyError: 7"


@pytest.mark.slow
def test_the_run_in_mlflow_carries_the_traceback(tmp_path: Path, database: Path) -> None:
    shutil.copy(database, tmp_path / "mlflow.db")
    config = load_config([f"run.root={tmp_path}", "run.name=mine", "tracking.emissions=false"])
    folder = run_folder(config)
    tracker = open_tracker(folder, config.tracking, root=tmp_path, run_name="mine")
    tracker.metrics({"train/loss": 1.0}, step=1)
    tracker.close("failed")
    report_failure(config, FAILURE)
    sync(folder)  # what a busy machine had no time to send
    with sqlite3.connect(tmp_path / "mlflow.db") as found:
        query = "SELECT run_uuid, status FROM runs WHERE name = 'mine'"
        ((run_id, status),) = found.execute(query).fetchall()
        query = "SELECT key, value FROM tags WHERE run_uuid = ?"
        tags = dict(found.execute(query, [run_id]).fetchall())
    found.close()
    assert status == "FAILED"
    assert tags["failure"] == "rank 3: KeyError: 7"
    (artifact,) = tmp_path.glob(f"mlartifacts/{run_id}/artifacts/failure.txt")
    assert artifact.read_text() == "rank 3\n" + FAILURE.text + "\n"


def test_a_run_that_never_began_gets_only_the_file(tmp_path: Path) -> None:
    config = load_config([f"run.root={tmp_path}", "run.name=mine"])
    run_folder(config).mkdir()
    report_failure(config, FAILURE)
    assert [path.name for path in run_folder(config).iterdir()] == ["failure.txt"]


def test_a_start_beside_a_running_one_leaves_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(
        [f"run.root={tmp_path}", "run.name=mine", "tracking.enabled=false"],
    )
    folder = run_folder(config)
    tracker = open_tracker(folder, config.tracking, root=tmp_path, run_name="mine")
    report_failure(config, FAILURE)
    assert not (folder / "failure.txt").exists()
    assert not caplog.text
    tracker.close("finished")


def test_a_folder_that_is_full_does_not_hide_the_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config([f"run.root={tmp_path}/absent", "run.name=mine"])
    report_failure(config, FAILURE)
    assert "the failure is not on the MLflow run" in caplog.text
