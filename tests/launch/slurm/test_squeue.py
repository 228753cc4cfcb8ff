"""What Slurm's commands say; the commands are stand-ins here."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.failures import INTERRUPTED_CODE
from launch.slurm import commands, squeue
from launch.slurm.commands import SlurmAwayError
from launch.slurm.squeue import (
    JobState,
    LiveJob,
    is_cancelled,
    is_running,
    job_state,
    job_states,
    living,
    requeue,
)
from segresmamba.errors import PASSING_CODE, sort_error

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
    # What scontrol requeue, release and update say while slurmctld is down (22.05).
    "Unexpected message received for job 4711",
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
    monkeypatch.setattr(commands.time, "sleep", pauses.append)
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
        ("A_STATE_OF_SLURM_99", True),
        ("COMPLETING", False),
        ("CANCELLED", False),
        ("REQUEUED", False),
        ("PENDING", False),
    ],
)
def test_a_job_that_is_being_signalled_still_runs(
    fake_command: FakeCommand, caplog: pytest.LogCaptureFixture, state: str, runs: bool
) -> None:
    fake_command("scontrol", f"echo '   JobState={state} Reason=None Dependency=(null)'")
    assert is_running("4711") == runs
    assert caplog.messages == (
        [] if runs else [f"left as it is: Slurm already has job 4711 as {state}"]
    )


@pytest.mark.parametrize("signal", ["TERM", "USR1", "USR2"])
def test_a_signal_to_all_processes_of_a_job_does_not_end_the_question_about_it(
    fake_command: FakeCommand, signal: str
) -> None:
    """Seen once at a preemption: the command died of it, and the run was not queued again."""
    fake_command("scontrol", f"kill -{signal} $$; echo JobState=RUNNING")
    assert is_running("4711")


def test_the_log_says_what_slurm_says_of_a_job_that_it_does_not_know(
    fake_command: FakeCommand, caplog: pytest.LogCaptureFixture
) -> None:
    fake_command("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert not is_running("4711")
    assert "of job 4711: slurm_load_jobs error: Invalid job id specified" in caplog.text


@pytest.mark.parametrize("message", AWAY)
def test_a_question_that_did_not_reach_slurm_is_repeated(
    fake_command: FakeCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    monkeypatch.setattr(commands.time, "sleep", lambda _: None)
    again = f"[ -e {tmp_path}/asked ] && echo JobState=RUNNING && exit"
    fake_command("scontrol", f"{again}; touch {tmp_path}/asked; echo '{message}' >&2; exit 1")
    assert is_running("4711")


def test_a_requeue_waits_for_the_controller(fake_command: FakeCommand, away_twice: str) -> None:
    fake_command("scontrol", away_twice)
    assert requeue("4711") == ""


def test_a_controller_that_stays_away_is_given_up(
    fake_command: FakeCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "AWAY_PATIENCE_S", -1.0)
    fake_command("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert requeue("4711") == "Unable to contact slurm controller"
    assert not is_running("4711")


@pytest.mark.parametrize("state", ["RESV_DEL_HOLD", "SPECIAL_EXIT", "A_STATE_OF_SLURM_99"])
def test_a_job_in_a_state_that_is_no_end_lives(fake_command: FakeCommand, state: str) -> None:
    fake_command("squeue", f"echo '4711 {state} 0 ReservationDeleted'")
    found = job_state("4711")
    assert found is not None
    assert not found.ended
    assert not found.has_failed


@pytest.mark.parametrize("message", AWAY)
def test_while_slurm_is_away_nobody_is_told_that_a_job_has_ended(
    fake_command: FakeCommand, message: str
) -> None:
    fake_command("squeue", f"echo '{message}' >&2; exit 1")
    # What sacct says of a living job may be old, and it has no line for a waiting one of an array.
    fake_command("sacct", "printf '4711_0|RUNNING|0:0\\n4710|COMPLETED|0:0\\n'")
    states = job_states(["4711_0", "4711_1", "4710"])
    assert {job: state.name for job, state in states.items()} == {
        "4711_0": squeue.UNKNOWN,
        "4711_1": squeue.UNKNOWN,
        "4710": "COMPLETED",
    }
    assert not states["4711_1"].ended
    for question in (
        lambda: living(["4711"]),
        lambda: squeue.refuse_queued("conversion", Path("store"), "convert-store"),
        lambda: squeue.cancel_forgotten("segresmamba sweep s", set()),
    ):
        with pytest.raises(SlurmAwayError) as caught:
            question()
        assert sort_error(caught.value).exit_code == PASSING_CODE
        assert caught.value.got == message


def test_what_could_not_be_cancelled_is_said(fake_command: FakeCommand) -> None:
    fake_command("scancel", f"echo 'scancel: error: {AWAY[0]}' >&2; exit 1")
    with pytest.raises(SlurmAwayError, match="scancel 4711"):
        squeue.cancel("4711")


@pytest.mark.parametrize(
    ("shown", "cancelled"),
    [
        ("JobState=COMPLETING Reason=None PreemptTime=None", True),
        ("JobState=CANCELLED Reason=None PreemptTime=None", True),
        ("JobState=COMPLETING Reason=TimeLimit PreemptTime=None", False),
        ("JobState=COMPLETING Reason=None PreemptTime=2026-11-30T13:15:37", False),
        ("JobState=RUNNING Reason=None PreemptTime=None", False),
    ],
)
def test_a_cancelled_job_is_told_from_one_that_its_limit_or_another_job_ends(
    fake_command: FakeCommand, shown: str, cancelled: bool
) -> None:
    fake_command("scontrol", f"echo '{shown}'")
    assert is_cancelled("4711") == cancelled


def test_a_job_that_is_in_the_queue_again_has_been_queued_again(fake_command: FakeCommand) -> None:
    fake_command("scontrol", "echo '4711: Job is pending execution' >&2; exit 1")
    assert requeue("4711") == ""


def test_a_refusal_to_requeue_is_not_repeated(fake_command: FakeCommand, tmp_path: Path) -> None:
    fake_command("scontrol", f"echo x >> {tmp_path}/asked; echo 'Access denied' >&2; exit 1")
    assert requeue("4711") == "Access denied"
    assert (tmp_path / "asked").read_text() == "x\n"
