"""Jobs on this machine: real processes, their logs, their ends."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from launch.failures import INTERRUPTED_CODE
from launch.jobs.train_job import TrainJob
from launch.launcher import start
from segresmamba.errors import LaunchError
from tests.launch.conftest import is_running, wait_for_file

MakeJob = Callable[..., TrainJob]
TWO_RANKS = "cluster.tasks_per_node=2"


def results(folder: Path) -> list[dict[str, object]]:
    """What the ranks of the last start found, in rank order; see `tests.launch.engines`."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("found-*.json"))]


def test_each_rank_learns_its_place_and_sees_the_shells_gpus(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert start(make_job("place", TWO_RANKS)) == 0
    for rank, result in enumerate(results(tmp_path / "place")):
        assert result == {
            "WORLD_SIZE": "2",
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "CUDA_VISIBLE_DEVICES": "2,3",
        }


def test_a_signal_to_all_processes_of_a_rank_asks_to_stop_and_ends_none(
    make_job: MakeJob, tmp_path: Path
) -> None:
    assert start(make_job("shielded")) == 0
    (result,) = results(tmp_path / "shielded")
    assert (result["asked to stop"], result["tracker ended"]) == (True, False)


def test_two_ranks_reduce_over_gloo(make_job: MakeJob, tmp_path: Path) -> None:
    assert start(make_job("reduces", TWO_RANKS)) == 0
    assert [result["total"] for result in results(tmp_path / "reduces")] == [21.0, 21.0]


def test_debug_runs_in_this_process(
    make_job: MakeJob, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert start(make_job("place", "cluster=debug")) == 0
    assert capsys.readouterr().out.startswith("finished at step 7: ")
    assert "RANK" not in os.environ


@pytest.mark.parametrize(
    ("behaviour", "code", "shown"),
    [
        ("raises", 1, "RuntimeError: the sky is falling"),
        ("refuses", 2, "  remedy: copy anew"),
        ("stale", 75, "  remedy: see that the file system and the network answer"),
        (
            "killed",
            1,
            "rank 1 ended without an error message, by signal SIGKILL; the kernel does so",
        ),
    ],
)
def test_the_first_failing_ranks_error_comes_last_and_the_others_are_ended(
    make_job: MakeJob,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    behaviour: str,
    code: int,
    shown: str,
) -> None:
    assert start(make_job(behaviour, TWO_RANKS)) == code
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1].startswith(shown)
    assert any(line.startswith("rank 1 failed first; its log: ") for line in lines)
    pid = int((tmp_path / behaviour / "hanging-0").read_text())
    assert not is_running(pid)
    (log,) = tmp_path.glob(f"{behaviour}/logs/*/*_1_log.out")
    assert ("Traceback" in log.read_text()) == (behaviour == "raises")


def test_the_only_rank_is_killed_and_the_command_says_so(
    make_job: MakeJob, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start(make_job("only_one_killed")) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1].startswith("rank 0 ended without an error message, by signal SIGKILL")
    assert lines[-2].startswith("rank 0 failed first; its log: ")


def test_the_only_ranks_error_is_shown_once(
    make_job: MakeJob, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start(make_job("only_one_raises")) == 1
    assert capfd.readouterr().err.count("RuntimeError: the sky is falling") == 1


def signal_ranks(folder: Path, signum: int, ranks: int) -> threading.Thread:
    """Signal every rank as soon as all are ready for it."""

    def send() -> None:
        pids = [int(wait_for_file(folder / f"ready-{rank}")) for rank in range(ranks)]
        for pid in pids:
            os.kill(pid, signum)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_a_preempted_job_saves_on_every_rank_and_is_started_again(
    make_job: MakeJob, tmp_path: Path
) -> None:
    folder = tmp_path / "preempted_once"
    sender = signal_ranks(folder, signal.SIGUSR2, ranks=2)
    assert start(make_job("preempted_once", TWO_RANKS)) == 0
    sender.join()
    assert [result["resumed"] for result in results(folder)] == [True, True]


def test_sigterm_to_the_ranks_saves_and_ends_the_job(
    make_job: MakeJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sender = signal_ranks(tmp_path / "stopped", signal.SIGTERM, ranks=1)
    assert start(make_job("stopped")) == INTERRUPTED_CODE
    sender.join()
    assert capsys.readouterr().out.startswith(f"preempted at step 7: {tmp_path}/stopped\n")


def start_elsewhere(behaviour: str, root: Path) -> subprocess.Popen[str]:
    """The launcher in a process of its own, to be signalled."""
    code = (
        # Tests that nohup has started ignore it, and so would this process.
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL);"
        "import sys; from launch import launcher; from launch.jobs.train_job import TrainJob;"
        "from segresmamba.config import load_config;"
        f"config = load_config(['run.root={root}', 'run.name={behaviour}']);"
        "sys.exit(launcher.start(TrainJob(config, engine='tests.launch.engines')))"
    )
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_interruption_saves(tmp_path: Path, signum: signal.Signals) -> None:
    process = start_elsewhere("stopped", tmp_path)
    wait_for_file(tmp_path / "stopped" / "ready-0")
    process.send_signal(signum)
    out, err = process.communicate(timeout=200)
    assert process.returncode == INTERRUPTED_CODE
    assert (tmp_path / "stopped" / "saved-0").exists()
    assert out.startswith("preempted at step 7: ")
    assert "asked the job to save a checkpoint and stop" in err


def test_the_second_interruption_ends_the_ranks_at_once(tmp_path: Path) -> None:
    process = start_elsewhere("hangs", tmp_path)
    pid = int(wait_for_file(tmp_path / "hangs" / "hanging-0"))
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "asked the job to save" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=200)
    assert process.returncode == INTERRUPTED_CODE
    assert not is_running(pid)


def test_ranks_save_and_stop_when_the_launcher_is_killed(tmp_path: Path) -> None:
    process = start_elsewhere("stopped", tmp_path)
    wait_for_file(tmp_path / "stopped" / "ready-0")
    process.kill()
    process.communicate(timeout=200)
    deadline = threading.Event()
    for _ in range(2000):
        if (tmp_path / "stopped" / "saved-0").exists():
            return
        deadline.wait(0.1)
    raise AssertionError("the ranks went on without their launcher")


def test_a_run_folder_that_cannot_be_written_is_named(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "place").write_text("a file is in the way")
    with pytest.raises(LaunchError, match="cannot be written") as caught:
        start(make_job("place"))
    assert str(tmp_path / "place") in caught.value.where
    assert "run.root=" in caught.value.remedy


def test_a_killed_controller_is_a_failure_and_not_an_interruption(tmp_path: Path) -> None:
    process = start_elsewhere("hangs", tmp_path)
    rank = psutil.Process(int(wait_for_file(tmp_path / "hangs" / "hanging-0")))
    controller = rank.parent()
    assert controller is not None
    controller.kill()
    try:
        _, errors = process.communicate(timeout=200)
    finally:
        rank.kill()
    assert process.returncode == 1
    assert "the process that watches the ranks ended by SIGKILL" in errors
