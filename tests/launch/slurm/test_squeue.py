"""What Slurm's commands say; the commands are stand-ins here."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.failures import INTERRUPTED_CODE
from launch.slurm import squeue
from launch.slurm.squeue import JobState, LiveJob, is_running, job_state, living, requeue

FakeCommand = Callable[[str, str], None]
AWAY = [
    "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
    "slurm_load_jobs error: Socket timed out on send/recv operation",
    "slurm_load_jobs error: Zero Bytes were transmitted or received",
    "slurm_load_jobs error: Message receive failure",
    "slurm_load_jobs error: Communication connection failure",
    "slurm_load_jobs error: Slurm backup controller in standby mode",
    "slurm_load_jobs error: Insane message length",
    "slurm_load_jobs error: Protocol authentication error",
]


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


@pytest.fixture
def away_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Shell that fails two times as scontrol does while slurmctld is restarted."""
    pauses: list[float] = []
    monkeypatch.setattr(squeue.time, "sleep", pauses.append)
    count = f"{tmp_path}/count"
    message = "Unable to contact slurm controller (connect failure)"
    return (
        f"echo x >> {count}; [ $(wc -l < {count}) -gt 2 ] || "
        f"{{ echo 'slurm_load_jobs error: {message}' >&2; exit 1; }}"
    )


def test_a_controller_that_is_away_does_not_make_a_job_an_ended_one(
    fake_command: FakeCommand, away_twice: str
) -> None:
    fake_command("scontrol", f"{away_twice}; echo JobState=RUNNING")
    assert is_running("4711")


@pytest.mark.parametrize(
    ("state", "runs"),
    [
        ("RUNNING", True),
        # Seen once in 300 answers while Slurm preempted a job: the run was not queued again.
        ("SIGNALING", True),
        ("RESIZING", True),
        ("COMPLETING", False),
        ("CANCELLED", False),
        ("REQUEUED", False),
        ("PENDING", False),
    ],
)
def test_a_job_that_is_being_signalled_still_runs(
    fake_command: FakeCommand, state: str, runs: bool
) -> None:
    fake_command("scontrol", f"echo '   JobState={state} Reason=None Dependency=(null)'")
    assert is_running("4711") == runs


@pytest.mark.parametrize("message", AWAY)
def test_a_question_that_did_not_reach_slurm_is_repeated(
    fake_command: FakeCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    monkeypatch.setattr(squeue.time, "sleep", lambda _: None)
    again = f"[ -e {tmp_path}/asked ] && echo JobState=RUNNING && exit"
    fake_command("scontrol", f"{again}; touch {tmp_path}/asked; echo '{message}' >&2; exit 1")
    assert is_running("4711")


def test_a_requeue_waits_for_the_controller(fake_command: FakeCommand, away_twice: str) -> None:
    fake_command("scontrol", away_twice)
    assert requeue("4711") == ""


def test_a_controller_that_stays_away_is_given_up(
    fake_command: FakeCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(squeue, "AWAY_PATIENCE_S", -1.0)
    fake_command("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert requeue("4711") == "Unable to contact slurm controller"
    assert not is_running("4711")


def test_a_refusal_to_requeue_is_not_repeated(fake_command: FakeCommand, tmp_path: Path) -> None:
    fake_command("scontrol", f"echo x >> {tmp_path}/asked; echo 'Access denied' >&2; exit 1")
    assert requeue("4711") == "Access denied"
    assert (tmp_path / "asked").read_text() == "x\n"
