"""The real engine under the launcher: two ranks, preempted in the middle."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from launch.jobs.train_job import TrainJob
from launch.launcher import start
from tests.engine.tiny import tiny_config

TWO_RANKS = ("cluster.tasks_per_node=2", "train.max_steps=30")


def steps(run: Path) -> list[int]:
    """The steps whose loss the journal has, as often as it has them; none before the run trains."""
    path = run / "journal.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    return [record["step"] for record in records if "train/loss" in record.get("values", ())]


def preempt(run: Path, ended: threading.Event) -> None:
    """Signal the job's controller, which passes it on to all ranks, once they train."""
    while len(steps(run)) < 3:
        if ended.wait(0.05):
            return
    (pickle,) = run.glob("logs/*/*_submitted.pkl")
    os.kill(int(pickle.name.split("_")[0]), signal.SIGUSR2)


@pytest.mark.slow
def test_a_preempted_run_goes_on_without_losing_or_repeating_a_step(
    tiny_store: Path, tmp_path: Path
) -> None:
    run = tmp_path / "tiny"
    ended = threading.Event()
    sender = threading.Thread(target=preempt, args=(run, ended))
    sender.start()
    try:
        assert start(TrainJob(tiny_config(tiny_store, tmp_path, *TWO_RANKS))) == 0
    finally:
        ended.set()
        sender.join()

    (log,) = run.glob("logs/*/*_0_log.out")
    assert "asked to stop: saved step" in log.read_text()
    assert "continuing from step" in log.read_text()
    assert steps(run) == list(range(1, 31))
