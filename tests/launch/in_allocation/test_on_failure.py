"""The end of a failed Slurm job, short of Slurm; on a real one it is in tests/cluster."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.failures import Failure, write_failure
from launch.in_allocation import on_failure
from segresmamba.config import Config, load_config, run_folder
from segresmamba.storage.locks import locked
from segresmamba.storage.run_folder import RunFolder

FakeCommand = Callable[[str, str], None]
KILLED = (
    "srun: error: gpu08: task 3: Killed\nsrun: error: gpu07: tasks 0-1: Exited with exit code 1\n"
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_command: FakeCommand) -> Config:
    """A run whose job 4711 has just failed, and that Slurm lets be queued again."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setattr(on_failure, "_END_S", 0)
    fake_command("scontrol", f'echo "$*" >> {tmp_path}/asked; echo JobState=RUNNING')
    config = load_config(["cluster=slurm", f"run.root={tmp_path}", "run.name=mine"])
    folder = run_folder(config)
    (folder / "logs").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000500").mkdir(parents=True)
    (folder / "logs" / "4711_0_log.out").write_text("job 4711, start 1, now, on gpu[07-08]\n")
    return config


def logs(config: Config) -> Path:
    return run_folder(config) / "logs"


def end(config: Config) -> int:
    return on_failure.on_failure(config, logs(config), 1)


def add_to_log(config: Config, text: str) -> None:
    with (logs(config) / "4711_0_log.out").open("a") as log:
        log.write(text)


def requeues(config: Config) -> int:
    return (config.run.root / "asked").read_text().count("requeue 4711")


def test_a_rank_that_died_without_a_word_is_the_cause_of_the_others_errors(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    write_failure(Failure(0, time.time(), 1, "Connection closed by peer"), logs(config), "4711")
    add_to_log(config, KILLED)
    assert end(config) == 1
    said = capsys.readouterr().err
    assert "rank 3 failed first" in said
    assert "rank 3 on gpu08 ended without an error message: Killed; the kernel does so" in said
    assert "Connection closed" not in said


def test_what_srun_said_of_an_earlier_start_is_old_news(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    add_to_log(config, KILLED + "job 4711, start 2, now, on gpu[07-08]\n")
    write_failure(Failure(1, time.time(), 1, "Traceback\nKeyError: 7"), logs(config), "4711")
    end(config)
    assert "rank 1 failed first" in capsys.readouterr().err
    assert (run_folder(config) / "failure.txt").read_text() == "rank 1\nTraceback\nKeyError: 7\n"


def test_without_progress_the_job_is_given_up(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_folder(config)
    for _ in range(3):
        end(config)
    assert requeues(config) == 2
    assert "not queued again: failed 3 times in a row at the same step" in capsys.readouterr().err
    history = [json.loads(line) for line in (folder / "failures.jsonl").read_text().splitlines()]
    assert [setback["checkpoint"] for setback in history] == [500, 500, 500]


def test_a_new_checkpoint_is_progress(config: Config) -> None:
    for step in (1000, 1500, 2000, 2500):
        end(config)
        (run_folder(config) / "checkpoints" / f"step-{step:08d}").mkdir()
    assert requeues(config) == 4


def test_a_mistake_of_the_user_is_not_tried_again(config: Config) -> None:
    write_failure(Failure(1, time.time(), 2, "error: no store"), logs(config), "4711")
    assert end(config) == 2
    assert requeues(config) == 0
    assert not (run_folder(config) / "failures.jsonl").exists()


def test_a_cancelled_job_has_nothing_to_say(
    config: Config, fake_command: FakeCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_command("scontrol", "echo JobState=CANCELLED")
    assert on_failure.on_failure(config, logs(config), 143) == 143
    assert capsys.readouterr().err == ""


def test_slurms_refusal_to_requeue_is_shown(
    config: Config, fake_command: FakeCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse = "echo 'Requested operation is presently disabled' >&2; exit 1"
    fake_command("scontrol", f"if [ $1 = requeue ]; then {refuse}; fi; echo JobState=RUNNING")
    assert end(config) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "Slurm does not queue it again: Requested operation is presently disabled"


def test_a_copy_that_a_user_made_of_a_checkpoint_is_no_checkpoint(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_folder(config) / "checkpoints" / "step-00000900.bak").mkdir()
    write_failure(Failure(1, time.time(), 1, "Traceback\nKeyError: 7"), logs(config), "4711")
    assert end(config) == 1
    assert requeues(config) == 1
    assert "with step 500 as the newest checkpoint" in capsys.readouterr().err
    assert (run_folder(config) / "failure.txt").read_text() == "rank 1\nTraceback\nKeyError: 7\n"


def test_a_passing_fault_is_queued_again_within_the_retries(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        write_failure(Failure(1, time.time(), 75, "error: the disk is full"), logs(config), "4711")
        assert end(config) == 75
    assert requeues(config) == 2
    assert "not queued again: failed 3 times in a row" in capsys.readouterr().err


def test_a_disk_too_full_for_the_record_of_a_failure_does_not_end_the_retries_nor_the_limit(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_folder(config) / "failures.jsonl").symlink_to("/dev/full")
    for restarts in range(4):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        write_failure(Failure(1, time.time(), 75, "error: the disk is full"), logs(config), "4711")
        assert end(config) == 75
    assert requeues(config) == 2


def test_a_rank_that_the_watchdog_ended_is_a_passing_fault(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    add_to_log(config, "srun: error: gpu08: task 1: Exited with exit code 75\n")
    assert end(config) == 75
    assert requeues(config) == 1
    assert "rank 1 on gpu08 ended without an error message: Exited" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["COMPLETING", "TIMEOUT"])
def test_a_job_that_could_not_save_at_its_time_limit_is_queued_again(
    config: Config,
    fake_command: FakeCommand,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    state: str,
) -> None:
    shown = f"JobState={state} Reason=TimeLimit"
    fake_command("scontrol", f'echo "$*" >> {tmp_path}/asked; echo {shown}')
    with locked(RunFolder.from_config(config).journal):  # a rank is still alive
        on_failure.at_limit(config, logs(config))
    assert requeues(config) == 1
    said = capsys.readouterr().err
    assert "queued again, failure 1 of at most 3" in said
    assert "error: the time limit has ended the job before its ranks had saved" in said
    assert "120 s before it" in (run_folder(config) / "failure.txt").read_text()
    on_failure.at_limit(config, logs(config))
    on_failure.at_limit(config, logs(config))
    assert requeues(config) == 2
    assert "not queued again: failed 3 times in a row at the same step" in capsys.readouterr().err


@pytest.mark.parametrize(
    "shown", ["JobState=COMPLETING Reason=None", "JobState=RUNNING Reason=None"]
)
def test_sigterm_that_is_not_of_the_time_limit_queues_nothing(
    config: Config, fake_command: FakeCommand, tmp_path: Path, shown: str
) -> None:
    fake_command("scontrol", f'echo "$*" >> {tmp_path}/asked; echo {shown}')
    on_failure.at_limit(config, logs(config))
    assert requeues(config) == 0
    assert not (run_folder(config) / "failures.jsonl").exists()
