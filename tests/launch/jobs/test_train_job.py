"""The job object: its signals, its pickle, the variables of a rank."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.jobs import rank
from launch.jobs.train_job import STOP_SIGNALS, StopSignals, TrainJob

MakeJob = Callable[..., TrainJob]


@pytest.fixture
def calls() -> Iterator[list[str]]:
    """Calls of the handlers that were there before, as submitit's are in a rank."""
    calls: list[str] = []
    previous = {
        signum: signal.signal(signum, lambda *_: calls.append("previous handler"))
        for signum in STOP_SIGNALS
    }
    yield calls
    for signum, handler in previous.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_asks_to_stop_and_nothing_else(calls: list[str], signum: int) -> None:
    with StopSignals() as signals:
        signals.pass_on(lambda: calls.append("stop"))
        signal.raise_signal(signum)
        signal.raise_signal(signum)  # while saving, say
    assert calls == ["stop", "stop"]
    assert signals.received == {signum}


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_during_the_imports_is_kept_until_there_is_an_engine(
    calls: list[str], signum: int
) -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), signum)
        assert calls == []
        signals.pass_on(lambda: calls.append("stop"))
    assert calls == ["stop"]


def test_the_handlers_before_are_back_afterwards(calls: list[str]) -> None:
    def fail() -> None:
        with StopSignals() as signals:
            signals.pass_on(lambda: calls.append("stop"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    signal.raise_signal(rank.REQUEUE_SIGNAL)
    assert calls == ["previous handler"]


def test_the_job_survives_pickling_and_a_requeue_runs_the_same_job(make_job: MakeJob) -> None:
    job = make_job("place")
    assert pickle.loads(pickle.dumps(job)) == job
    assert job.checkpoint().function == job


def test_building_a_job_imports_nothing_heavy() -> None:
    code = (
        "import sys; from launch.jobs.train_job import TrainJob;"
        "from segresmamba.config import load_config;"
        "import pickle; pickle.dumps(TrainJob(load_config()));"
        "heavy = {'torch', 'deepspeed', 'mlflow', 'monai', 'codecarbon'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def slurm_place(
    monkeypatch: pytest.MonkeyPatch, job_id: str, number: int, nodes: int, tasks: int
) -> dict[str, str]:
    values = {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": job_id,
        "SLURM_NTASKS": str(tasks),
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NODEID": str(number * nodes // tasks),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number % (tasks // nodes)),
        "SLURM_JOB_NODELIST": "gpu[07-08]" if nodes == 2 else "gpu07",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    return rank.rank_environment(rank.place())


def test_ranks_on_two_nodes_meet_at_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = slurm_place(monkeypatch, "4711", number=5, nodes=2, tasks=8)
    port = environment.pop("MASTER_PORT")
    assert environment == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu07",
    }
    first = slurm_place(monkeypatch, "4711", number=0, nodes=2, tasks=8)
    assert first["MASTER_PORT"] == port
    assert slurm_place(monkeypatch, "4712", number=0, nodes=2, tasks=8)["MASTER_PORT"] != port


def test_ranks_on_one_node_need_no_name_service(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = slurm_place(monkeypatch, "4711", number=1, nodes=1, tasks=2)
    assert environment["MASTER_ADDR"] == "127.0.0.1"


def test_ranks_meet_at_the_port_that_was_chosen_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm_place(monkeypatch, "4711", number=1, nodes=1, tasks=2)
    monkeypatch.setenv("MASTER_PORT", "23456")
    assert rank.rank_environment(rank.place())["MASTER_PORT"] == "23456"


@pytest.mark.parametrize(
    ("received", "state", "expected"),
    [
        ({signal.SIGUSR2}, "RUNNING", True),
        ({signal.SIGTERM}, "RUNNING", True),
        ({signal.SIGTERM}, "COMPLETING", False),
        ({signal.SIGTERM, signal.SIGUSR2}, "RUNNING", True),
    ],
)
def test_on_slurm_a_job_goes_back_to_the_queue_unless_it_was_cancelled(
    monkeypatch: pytest.MonkeyPatch,
    fake_command: Callable[..., None],
    received: set[int],
    state: str,
    expected: bool,
) -> None:
    fake_command("scontrol", f"echo '   JobState={state} Reason=None'")
    slurm_place(monkeypatch, "4711", number=0, nodes=1, tasks=1)
    assert rank.goes_back_to_queue(received) is expected


def test_a_job_that_was_cancelled_after_its_warning_stays_away(
    monkeypatch: pytest.MonkeyPatch, fake_command: Callable[..., None]
) -> None:
    slurm_place(monkeypatch, "4711", number=0, nodes=1, tasks=1)
    warned = {signal.SIGUSR2, signal.SIGTERM}
    fake_command("scontrol", "echo 'JobState=COMPLETING Reason=None PreemptTime=None'")
    assert not rank.goes_back_to_queue(warned)
    fake_command("scontrol", "echo 'JobState=COMPLETING Reason=TimeLimit PreemptTime=None'")
    assert rank.goes_back_to_queue(warned)


def test_the_last_job_of_an_array_does_not_take_the_others_for_itself(
    monkeypatch: pytest.MonkeyPatch, fake_command: Callable[..., None]
) -> None:
    # It has the number of the array, of which scontrol shows all jobs.
    slurm_place(monkeypatch, "4711", number=0, nodes=1, tasks=1)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    fake_command(
        "scontrol",
        "echo 'JobState=COMPLETING Reason=None'; [ $3 = 4711_2 ] || echo 'JobState=RUNNING'",
    )
    assert not rank.goes_back_to_queue({signal.SIGTERM})


def test_only_the_first_rank_asks_slurm_about_a_sigterm(
    monkeypatch: pytest.MonkeyPatch, fake_command: Callable[..., None], tmp_path: Path
) -> None:
    fake_command("scontrol", f"echo asked >> {tmp_path}/asked; echo JobState=RUNNING")
    for number in range(8):
        slurm_place(monkeypatch, "4711", number=number, nodes=2, tasks=8)
        assert rank.goes_back_to_queue({signal.SIGTERM}) is (number == 0)
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_on_this_machine_sigterm_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    assert not rank.goes_back_to_queue({signal.SIGTERM})
    assert rank.goes_back_to_queue({signal.SIGTERM, signal.SIGUSR2})


# As a library does whose thread is in the way: it aborts once Python takes itself apart.
CODE = """
import atexit, importlib.machinery, multiprocessing, os, sys
semaphore = multiprocessing.get_context("spawn").Semaphore()  # as queues to readers have them
sys.modules["__main__"].__spec__ = importlib.machinery.ModuleSpec({name!r}, None)
from launch.jobs.train_job import QuickExit
class Library:
    def __del__(self, abort=os.abort):
        abort()
kept = Library()
quick_exit = QuickExit()
atexit.register(print, "exit handlers ran")
quick_exit.code = {code}
sys.exit({status})
"""
SUBMITIT = "submitit.core._submit"


@pytest.mark.parametrize(
    ("name", "code", "status", "ended"),
    [
        ("launch.jobs.start", 0, 0, 0),
        ("launch.jobs.start", 75, 75, 75),
        (SUBMITIT, 0, 0, 0),
        (SUBMITIT, None, 2, -6),
        ("another", 0, 0, -6),
    ],
)
def test_only_a_rank_that_is_done_leaves_before_python_takes_itself_apart(
    name: str, code: int | None, status: int, ended: int
) -> None:
    words = [sys.executable, "-c", CODE.format(name=name, code=code, status=status)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (ended, "exit handlers ran\n")
    assert "leaked semaphore" not in done.stderr
