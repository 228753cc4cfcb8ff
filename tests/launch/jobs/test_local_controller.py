"""The local controller, with plain shell commands for ranks."""

import shlex
from pathlib import Path

import pytest

from launch.failures import first_failure
from launch.jobs.local_controller import LocalPlan
from tests.launch.conftest import wait_for_file


def run(tmp_path: Path, script: str, *, ranks: int = 2, limit_s: float = 60.0) -> int:
    """Run `script` on every rank; the exit code of the controller."""
    command = f"bash -c {shlex.quote(script)}"
    plan = LocalPlan(str(tmp_path), command, ranks, limit_s, signal_delay_s=1.0)
    return plan.start().wait(timeout=200)


def test_ranks_that_end_well_end_the_job_well(tmp_path: Path) -> None:
    assert run(tmp_path, "echo rank $SUBMITIT_LOCAL_GLOBALID of $SUBMITIT_LOCAL_NTASKS") == 0
    logs = sorted(path.read_text() for path in tmp_path.glob("*_log.out"))
    assert logs == ["rank 0 of 2\n", "rank 1 of 2\n"]
    assert not list(tmp_path.glob("*_failure.json"))


def test_a_requeued_job_is_started_again_and_its_log_goes_on(tmp_path: Path) -> None:
    script = f"echo start; mkdir {tmp_path}/seen 2>/dev/null || exit 0; exit 144"
    assert run(tmp_path, script, ranks=1) == 0
    (log,) = tmp_path.glob("*_log.out")
    assert log.read_text() == "start\nstart\n"


@pytest.mark.parametrize(
    ("end", "said", "code"),
    [
        ("exit 7", "by exit code 7", 1),
        ("kill -SEGV $$", "by signal SIGSEGV", 1),
        # As the watchdog ends a rank that hangs.
        ("exit 75", "by exit code 75, a passing fault; the end of its log says which", 75),
    ],
)
def test_a_rank_that_dies_ends_the_others_and_is_named(
    tmp_path: Path, end: str, said: str, code: int
) -> None:
    assert run(tmp_path, f'[ "$SUBMITIT_LOCAL_GLOBALID" = 0 ] && exec sleep 300; {end}') == 1
    job_id = next(tmp_path.glob("*_1_log.out")).name.split("_")[0]
    failure = first_failure(tmp_path, job_id)
    assert failure is not None
    assert (failure.rank, failure.exit_code) == (1, code)
    assert failure.text == f"rank 1 ended without an error message, {said}"


def test_a_failure_that_cannot_be_written_is_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    assert run(logs, f"rm -r {logs}; exit 7", ranks=1) == 1
    said = capfd.readouterr().err
    assert said.startswith("rank 0 ended without an error message, by exit code 7\n")
    assert "Traceback" not in said


def test_ranks_are_warned_before_the_time_limit(tmp_path: Path) -> None:
    script = "trap 'echo warned; exit 0' USR2; while :; do sleep 0.1; done"
    assert run(tmp_path, script, limit_s=2.0) == 0
    assert all(path.read_text() == "warned\n" for path in tmp_path.glob("*_log.out"))


def test_ranks_that_ignore_the_warning_are_ended_at_the_limit(tmp_path: Path) -> None:
    assert run(tmp_path, "trap '' USR2; sleep 300", ranks=1, limit_s=2.0) == 1
    (record,) = tmp_path.glob("*_failure.json")
    assert "the time limit of 2 s was over" in record.read_text()


def test_ranks_are_asked_to_save_and_stop_when_their_controller_is_killed(tmp_path: Path) -> None:
    script = f"trap 'echo saved > {tmp_path}/saved; exit 0' TERM; echo > {tmp_path}/ready; "
    command = f"bash -c {shlex.quote(script + 'while :; do sleep 0.1; done')}"
    controller = LocalPlan(str(tmp_path), command, 1, limit_s=60.0, signal_delay_s=1.0).start()
    wait_for_file(tmp_path / "ready")
    controller.kill()
    controller.wait()
    assert wait_for_file(tmp_path / "saved") == "saved\n"
