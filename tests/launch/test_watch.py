"""Watching a job; the queue is a stand-in here."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

import pytest

from launch import watch
from tests.processes import started

FakeCommand = Callable[[str, str], None]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "QUEUE_POLL_S", 0.01)
    monkeypatch.setattr(watch, "LOG_DELAY_S", 0.0)


def test_each_state_is_said_once_and_the_log_is_shown_as_it_grows(
    tmp_path: Path, fake_command: FakeCommand, capfd: pytest.CaptureFixture[str]
) -> None:
    log, turn = tmp_path / "log", tmp_path / "turn"
    states = [
        "4711 PENDING 0 Resources",
        "4711 PENDING 0 Resources",
        "4711 RUNNING 0 None",
        "4711 FAILED 512 NonZeroExitCode",
    ]
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    fake_command(
        "squeue",
        f"echo x >> {turn}; n=$(wc -l < {turn}); echo line $n >> {log}; "
        f"sed -n ${{n}}p {tmp_path}/states",
    )
    assert watch.follow("4711", log) == 2
    assert capfd.readouterr().err.splitlines() == [
        "line 1",
        "job 4711: PENDING (Resources)",
        "line 2",
        "line 3",
        "job 4711: RUNNING",
        "line 4",
        "job 4711: FAILED (NonZeroExitCode)",
    ]


def test_a_controller_that_is_away_does_not_end_the_watching(
    tmp_path: Path, fake_command: FakeCommand, capfd: pytest.CaptureFixture[str]
) -> None:
    turn = tmp_path / "turn"
    fake_command(
        "squeue",
        f"echo x >> {turn}; case $(wc -l < {turn}) in 1) echo 4711 RUNNING 0 None;; "
        "2) echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1;; "
        "*) echo 4711 COMPLETED 0 None; esac",
    )
    fake_command("sacct", "exit 1")
    assert watch.follow("4711", tmp_path / "log") == 0
    assert capfd.readouterr().err.splitlines() == [
        "job 4711: RUNNING",
        "job 4711: UNKNOWN (Slurm does not answer)",
        "job 4711: COMPLETED",
    ]


def test_a_job_that_nobody_knows_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert watch.follow("4711", tmp_path / "log") == 1


def test_ctrl_c_ends_the_watching_and_not_the_job(
    tmp_path: Path, fake_command: FakeCommand
) -> None:
    fake_command("squeue", "echo 4711 RUNNING 0 None")
    fake_command("scancel", f"touch {tmp_path}/cancelled")
    code = (
        "import sys; from pathlib import Path; from launch.watch import follow;"
        f"sys.exit(follow('4711', Path('{tmp_path}/log')))"
    )
    command = [sys.executable, "-c", code]
    with started(command, stderr=PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "job 4711: RUNNING\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().startswith("job 4711: goes on; `scancel 4711` ends it")
        process.wait(timeout=200)
    assert process.returncode == 130
    assert not (tmp_path / "cancelled").exists()
