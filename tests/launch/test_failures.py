"""Failures among a job's logs."""

from pathlib import Path

from launch.failures import Failure, first_failure, write_failure
from segresmamba.errors import CheckpointError


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
