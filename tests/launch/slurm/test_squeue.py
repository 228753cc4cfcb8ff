"""What Slurm's commands say; the commands are stand-ins here."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.failures import INTERRUPTED_CODE
from launch.slurm.squeue import JobState, LiveJob, job_state, living

FakeCommand = Callable[[str, str], None]


def test_squeue_knows_a_living_job(fake_command: FakeCommand) -> None:
    fake_command("squeue", "echo '4711   PENDING   0   BeginTime  '")
    fake_command("sacct", "exit 1")
    state = job_state("4711")
    assert state == JobState("PENDING", 0, "BeginTime")
    assert str(state) == "PENDING (BeginTime)"
    assert not state.ended


@pytest.mark.parametrize(
    ("said", "state", "code"),
    [
        ("4711|FAILED|2:0", "FAILED", 2),
        ("4711|CANCELLED by 1000|0:15", "CANCELLED", INTERRUPTED_CODE),
        ("4711|PREEMPTED|0:0\\n4711|COMPLETED|0:0", "COMPLETED", 0),
        ("4711|NODE_FAIL|0:0", "NODE_FAIL", 1),
        ("4711|TIMEOUT|0:0", "TIMEOUT", 1),
    ],
)
def test_sacct_knows_a_job_that_squeue_has_forgotten(
    fake_command: FakeCommand, said: str, state: str, code: int
) -> None:
    fake_command("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    fake_command("sacct", f"printf '{said}\\n'")
    found = job_state("4711")
    assert found is not None
    assert found.ended
    assert (found.name, found.exit_code) == (state, code)


def test_squeue_gives_the_exit_code_as_the_kernel_does(fake_command: FakeCommand) -> None:
    fake_command("squeue", "echo '4711 FAILED 768 NonZeroExitCode'")
    state = job_state("4711")
    assert state is not None
    assert state.exit_code == 3


def test_a_machine_without_slurm_knows_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert job_state("4711") is None


def test_of_some_jobs_the_one_that_is_not_over_is_shown_with_its_state(
    fake_command: FakeCommand,
) -> None:
    fake_command("squeue", "case $2 in --jobs=7,8) echo 8 RUNNING None;; *) exit 1; esac")
    assert living(["7", "8"]) == LiveJob("8", "RUNNING", "None")
    assert str(living(["7", "8"])) == "job 8: RUNNING"
    assert living(["7"]) is None
    assert living([]) is None
