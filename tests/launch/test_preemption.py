"""The real engine under the launcher: two ranks, preempted in the middle."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from launch import launcher
from launch.job import TrainJob
from tests.engine.tiny import tiny_config

TWO_RANKS = ("cluster.tasks_per_node=2", "train.max_steps=30")


def losses(run: Path) -> list[tuple[int, float]]:
    """Step and loss as often as the journal has them; none before the run trains."""
    path = run / "journal.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    records = [
        record for record in map(json.loads, lines) if "train/loss" in record.get("values", ())
    ]
    return [(record["step"], record["values"]["train/loss"]) for record in records]


def preempt(run: Path) -> None:
    """Signal the job's controller, which passes it on to all ranks, once they train."""
    deadline = time.monotonic() + 120
    while len(losses(run)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (pickle,) = run.glob("logs/*/*_submitted.pkl")
    os.kill(int(pickle.name.split("_")[0]), signal.SIGUSR2)


@pytest.mark.slow
def test_a_preempted_run_goes_on_without_losing_or_repeating_a_step(
    tiny_store: Path, tmp_path: Path
) -> None:
    whole = TrainJob(tiny_config(tiny_store, tmp_path / "whole", *TWO_RANKS))
    assert launcher.start(whole) == 0

    cut = TrainJob(tiny_config(tiny_store, tmp_path / "cut", *TWO_RANKS))
    sender = threading.Thread(target=preempt, args=(tmp_path / "cut" / "tiny",))
    sender.start()
    assert launcher.start(cut) == 0
    sender.join()

    (log,) = (tmp_path / "cut").glob("tiny/logs/*/*_0_log.out")
    assert "asked to stop: saved step" in log.read_text()
    assert "continuing from step" in log.read_text()
    steps, got = zip(*losses(tmp_path / "cut" / "tiny"), strict=True)
    assert list(steps) == list(range(1, 31))
    expected = [loss for _, loss in losses(tmp_path / "whole" / "tiny")]
    assert list(got) == pytest.approx(expected, abs=1e-5)
