"""The uploader as a process, against real servers and real kills."""

from __future__ import annotations

import io
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch.ports import free_port
from segresmamba.config import TrackingConfig
from segresmamba.storage.locks import is_locked
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking import open_tracker, sync
from segresmamba.tracking.__main__ import SIGNALS
from segresmamba.tracking.journal import Journal
from segresmamba.tracking.mlflow.state import UploadState, open_state
from segresmamba.tracking.mlflow.uploader import (
    LAUNCHER_S,
    LOCK_NAME,
    START_S,
    Uploader,
    follow,
    has_everything,
)
from segresmamba.tracking.mlflow.uploader import run as run_uploader
from segresmamba.tracking.run_tracker import RESTARTS, WAIT_S
from tests.tracking.server import Server, wait_for


def everything_sent(run: Path) -> bool:
    return UploadState.load(run).sent_bytes == RunFolder(run).journal.stat().st_size


def history(run: Path, key: str = "loss") -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    state = UploadState.load(run)
    points = MlflowClient(state.uri).get_metric_history(state.run_id, key)
    return [(point.step, point.value) for point in points]


@pytest.mark.slow
def test_a_server_that_comes_late_and_is_killed_gets_everything_once(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    config = TrackingConfig(uri=server.uri)
    (run / "overlays").mkdir(parents=True)
    (run / "overlays" / "case.png").write_bytes(b"picture")

    tracker = open_tracker(run, config, root=tmp_path, run_name="run")
    tracker.params({"train": {"lr": 0.1}})
    tracker.metrics({"loss": 0.0}, step=0)
    assert tracker.ui_hint() == server.uri  # no page of the run yet

    server.start()
    server.wait()
    wait_for(lambda: everything_sent(run))
    assert tracker.ui_hint().startswith(f"{server.uri}/#/experiments/")
    assert tracker.ui_hint().endswith(f"/runs/{UploadState.load(run).run_id}")

    server.kill()
    tracker.metrics({"loss": 1.0}, step=1)
    tracker.artifact(run / "overlays")
    tracker.close("preempted")  # the server is still down
    assert f"segresmamba sync {run}" in caplog.text
    assert not everything_sent(run)

    server.start()
    tracker = open_tracker(run, config, root=tmp_path, run_name="run")  # requeued
    tracker.metrics({"loss": 1.5}, step=1)  # trained again since the checkpoint
    tracker.metrics({"loss": 2.0}, step=2)
    server.wait()
    tracker.close("finished")
    assert everything_sent(run)
    sync(run)
    sync(run)
    assert history(run) == [(0, 0.0), (1, 1.0), (2, 2.0)]

    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(config.experiment)
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params == {"train.lr": "0.1"}
    picture = client.download_artifacts(found.info.run_id, "overlays/case.png", str(tmp_path))
    assert Path(picture).read_bytes() == b"picture"


KILL = "os.kill(os.getpid(), signal.SIGKILL)"
TRAINING = f"""
import os, pathlib, signal, sys
from segresmamba.config import TrackingConfig
from segresmamba.tracking import open_tracker
from segresmamba.tracking.run_tracker import WAIT_S
WAIT_S["failed"] = 300.0  # this machine may be busy
root = pathlib.Path(sys.argv[1])
tracker = open_tracker(root / "run", TrackingConfig(), root=root, run_name="run")
for step in range(5):
    tracker.metrics({{"loss": step}}, step=step)
{KILL}
"""


@pytest.mark.slow
def test_what_was_recorded_before_a_kill_arrives_and_a_resume_goes_on(root: Path) -> None:
    run = root / "run"
    subprocess.run([sys.executable, "-c", TRAINING, str(root)], check=False)
    wait_for(lambda: everything_sent(run))
    first = UploadState.load(run).run_id

    tracker = open_tracker(run, TrackingConfig(), root=root, run_name="run")
    for step in range(3, 8):
        tracker.metrics({"loss": step}, step=step)
    tracker.close("finished")
    assert UploadState.load(run).run_id == first
    assert history(run) == [(step, float(step)) for step in range(8)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "raised"])
def test_the_uploader_of_a_failed_run_sends_what_the_launcher_adds(
    how: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = root / "run"
    end = {"killed": TRAINING, "raised": TRAINING.replace(KILL, 'tracker.close("failed")')}[how]
    subprocess.run([sys.executable, "-c", end, str(root)], check=False)
    assert is_locked(run / LOCK_NAME)  # it lives on
    with monkeypatch.context() as patch:  # and nobody starts another
        patch.setattr("segresmamba.tracking.run_tracker.Uploader", None)
        patch.setitem(WAIT_S, "failed", 300.0)
        (run / "failure.txt").write_text("KeyError: 7")
        tracker = open_tracker(run, TrackingConfig(), root=root, run_name="run", begins=False)
        tracker.tags({"failure": "KeyError"})
        tracker.artifact(run / "failure.txt")
        tracker.close("failed")
    assert everything_sent(run)
    assert history(run) == [(step, float(step)) for step in range(5)]
    assert (root / "mlartifacts" / UploadState.load(run).run_id / "artifacts/failure.txt").exists()
    wait_for(lambda: not is_locked(run / LOCK_NAME))  # it ends as soon as it knows


@pytest.mark.slow
def test_a_failed_run_that_is_deleted_at_once_is_no_error(root: Path) -> None:
    ended = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(root)], stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: (root / "run").exists() and ended.poll() is not None)
    wait_for(lambda: everything_sent(root / "run"))
    shutil.rmtree(root / "run")
    assert ended.communicate()[1] == ""  # its end comes with the uploader's


@pytest.mark.slow
def test_a_failed_run_without_a_launcher_is_left_alone_after_some_seconds(root: Path) -> None:
    subprocess.run([sys.executable, "-c", TRAINING, str(root)], check=False)
    began_s = time.monotonic()
    wait_for(lambda: not is_locked(root / "run" / LOCK_NAME))
    assert time.monotonic() - began_s >= LAUNCHER_S / 2
    tracker = open_tracker(root / "run", TrackingConfig(), root=root, run_name="run", begins=False)
    tracker.tags({"failure": "late"})
    tracker.close("failed")  # with an uploader of its own
    assert everything_sent(root / "run")


def kill_uploader() -> None:
    """Kill the uploader that this process has started, and wait until the kernel has ended it."""
    (uploader,) = (
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "segresmamba.tracking" in child.cmdline()
    )
    uploader.kill()
    wait_for(lambda: uploader.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.slow
def test_an_uploader_that_was_killed_is_started_again(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker(root / "run", TrackingConfig(), root=root, run_name="run")
    kill_uploader()
    tracker.metrics({"loss": 0.0}, step=0)
    assert "was killed" in caplog.text
    kill_uploader()
    tracker.close("finished")
    assert everything_sent(root / "run")


def test_an_uploader_that_is_killed_again_and_again_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker(tmp_path / "run", TrackingConfig(), root=tmp_path, run_name="run")
    for step in range(RESTARTS + 1):
        kill_uploader()
        tracker.metrics({"loss": 0.0}, step=step)
    tracker.metrics({"loss": 0.0}, step=RESTARTS + 1)
    assert len([text for text in caplog.messages if "is started again" in text]) == RESTARTS
    assert len([text for text in caplog.messages if "nothing more is sent" in text]) == 1
    tracker.close("finished")
    assert "segresmamba sync" in caplog.text


@pytest.mark.parametrize(("wait_s", "told"), [(0.3, True), (0.1, False)])
def test_a_command_that_waits_for_mlflow_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wait_s: float,
    told: bool,
) -> None:
    monkeypatch.setattr("segresmamba.tracking.mlflow.uploader.NOTE_S", 0.1)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    with caplog.at_level("INFO"):
        Uploader(tmp_path, "text").close(wait_s)
    assert ("waiting for MLflow" in caplog.text) is told


def test_the_uploader_of_a_failed_run_leaves_the_next_start_to_its_own(
    run: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a start records first may belong to another attempt, so it must not be sent too soon."""
    monkeypatch.setattr("segresmamba.tracking.mlflow.uploader.LAUNCHER_S", 0.2)
    journal.append("metrics", step=1, epoch=None, values={"loss": 1.0})

    def pushed(folder: Path, training_ended: object) -> bool:
        """Stands for `follow`: all is sent, and then another process begins with the run."""
        state = UploadState.load(folder)
        state.sent_bytes = journal.size
        state.save(folder)
        journal.append("status", status="running")
        calls.append(folder)
        return True

    calls: list[Path] = []
    monkeypatch.setattr("segresmamba.tracking.mlflow.uploader.follow", pushed)
    assert run_uploader(run, io.BytesIO())
    assert len(calls) == 1


def test_a_run_folder_that_was_deleted_has_nothing_to_send(tmp_path: Path) -> None:
    open_state(tmp_path, TrackingConfig(), tmp_path).save(tmp_path)
    assert not has_everything(tmp_path)


def test_slurms_signals_do_not_stop_the_uploader(tmp_path: Path) -> None:
    assert {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2} < set(SIGNALS)
    code = (
        "import os, segresmamba.tracking.__main__ as process\n"
        "process.run = lambda *_: [os.kill(os.getpid(), number) for number in process.SIGNALS]\n"
        "raise SystemExit(process.main())"
    )
    assert (
        subprocess.run([sys.executable, "-c", code, str(tmp_path), "auto"], check=False).returncode
        == 0
    )


@pytest.fixture
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segresmamba.tracking.mlflow.uploader.POLL_S", 0.0)


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """A run folder whose MLflow does not exist."""
    Journal(RunFolder(tmp_path).journal, name="run").close()
    uri = f"http://127.0.0.1:{free_port(str(tmp_path))}"
    open_state(tmp_path, TrackingConfig(uri=uri), tmp_path).save(tmp_path)
    return tmp_path


def test_a_log_in_json_is_json_throughout(nowhere: Path) -> None:
    command = [sys.executable, "-m", "segresmamba.tracking", str(nowhere), "json"]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    (line,) = map(json.loads, ended.stderr.splitlines())
    assert "cannot be reached" in line["message"]


@pytest.mark.usefixtures("_no_waiting")
def test_an_outage_is_told_once_and_given_up_some_time_after_training(
    nowhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    polls = iter([False] * 4 + [True])
    with caplog.at_level(logging.INFO):
        assert not follow(nowhere, lambda _: next(polls))
    assert len([message for message in caplog.messages if "cannot be reached" in message]) == 1


@pytest.mark.usefixtures("_no_waiting")
def test_waiting_grows_with_an_outage(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segresmamba.tracking.mlflow.uploader.POLL_S", 1e-3)
    delays: list[float] = []

    def training_ended(delay_s: float) -> bool:
        delays.append(delay_s)
        return len(delays) == 6

    follow(nowhere, training_ended)
    assert delays == [START_S, *(1e-3 * 2**index for index in range(1, 6))]


@pytest.mark.usefixtures("_no_waiting")
def test_a_refusal_ends_the_upload_with_the_remedy(
    run: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(UploadState.load(run).uri)
    client.delete_experiment(client.create_experiment("segresmamba"))
    assert not follow(run, lambda _: False)
    assert "mlflow experiments restore" in caplog.text


@pytest.mark.usefixtures("_no_waiting")
def test_without_mlflow_installed_the_journal_is_kept_and_sent_later(
    run: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal.append("metrics", step=0, epoch=None, values={"loss": 1.0})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mlflow", None)  # importing it fails
        assert not follow(run, lambda _: True)
    assert "cannot be reached" in caplog.text
    sync(run)
    assert history(run) == [(0, 1.0)]
