"""Sweeps as arrays of jobs: a controller that is killed, trials that are lost, and a search."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections import Counter
from pathlib import Path

import pytest

from launch.sweep import Sweep
from launch.trial import FINISHED, OVER
from tests.cluster.jobs import REPOSITORY, Job, launch, losses, release, run, slurm, wait_until


@pytest.fixture
def trial_words(words: tuple[str, ...], tmp_path: Path) -> tuple[str, ...]:
    """A small experiment of one rank, with a network that nothing has to be compiled for."""
    small = ("cluster.nodes=1", "model=segresnet", "model.init_filters=8", "train.max_steps=3")
    light = ("tracking.system_metrics=false", "tracking.log_model=false")
    same = (word for word in words if not word.startswith("model."))
    return (*same, *small, *light, "train.validate_every=1", f"run.root={tmp_path}/runs")


def kill_the_controller_once_it_has_submitted(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kill -9` in the one moment in which Slurm knows of jobs that the manifest does not."""
    deadly = tmp_path / "bin"
    deadly.mkdir()
    (deadly / "sbatch").write_text('#!/bin/sh\n/usr/bin/sbatch "$@"\nkill -9 $PPID\n')
    (deadly / "sbatch").chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{deadly}:{os.environ['PATH']}")
        done = launch("sweep", *words)
    assert done.returncode == -9


def watch(sweep: Sweep, most: int) -> None:
    """Wait until all jobs have ended; never may more than `most` of an array run at once."""

    def ended() -> bool:
        queue = slurm("squeue", "--noheader", "--array", "--format=%F %K %T %r").splitlines()
        arrays = Counter(line.split()[0] for line in queue if "RUNNING" in line)
        assert max(arrays.values(), default=0) <= most, queue
        for line in queue:
            array, task, _, reason = line.split(maxsplit=3)
            if reason == "BeginTime":
                release(f"{array}_{task}")
        return not queue

    wait_until(ended, "the end of the sweep", lambda: str(sweep.trials))
    sweep.refresh()


def test_a_sweep_survives_its_controller_and_is_mended_by_the_same_command(
    trial_words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--name=s", "--max-parallel=2", *trial_words, "seed=range(0,3)")
    kill_the_controller_once_it_has_submitted(words, tmp_path, monkeypatch)
    (forgotten,) = set(slurm("squeue", "--noheader", "--format=%F").split())

    # The same again, from a job of its own.
    script = str(REPOSITORY / "slurm" / "sweep.sh")
    done = run("sbatch", "--parsable", script, *words, cwd=tmp_path)
    controller = Job(done.stdout.strip(), tmp_path)
    output = tmp_path / f"slurm-{controller.id}.out"
    assert controller.end().exit_code == 0, output.read_text()
    assert "3 trials, 2 at once" in output.read_text()
    assert slurm("squeue", "--noheader", f"--jobs={forgotten}") == ""

    sweep = Sweep.read(tmp_path / "runs" / "sweeps" / "s")
    first, second, third = (Job(str(trial.job), Path(trial.run)) for trial in sweep.trials)
    slurm("scancel", third.id)  # before it starts
    second.wait_for("RUNNING")
    slurm("scancel", second.id)
    first.wait_for_step(1)
    first.hold()
    slurm("scontrol", "requeue", first.id)
    first.go_on()
    watch(sweep, most=2)
    shown = launch("status", str(sweep.folder)).stdout
    assert "1 finished, 2 stopped" in shown, shown
    assert re.findall(r"^job \S+, start (\d)", first.log, re.MULTILINE) == ["1", "2"]
    assert [step for step, _ in losses(first.run)] == [1, 2, 3]

    mended = launch("resume", "--max-parallel=2", str(sweep.folder))
    assert "2 trials, 2 at once" in mended.stdout, mended.stderr
    sweep = Sweep.read(sweep.folder)
    watch(sweep, most=2)
    assert {trial.state for trial in sweep.trials} == {FINISHED}, launch("status").stdout
    # By the trial that was the last.
    assert {trial.state for trial in Sweep.read(sweep.folder).trials} == {FINISHED}
    summary = json.loads((sweep.folder / "summary.json").read_text())
    assert summary["metrics"]["validation/dice/mean"]["n"] == 3
    runs = {Path(trial.run).name for trial in sweep.trials}
    assert children(tmp_path / "runs", "s", 4) == {*runs, "s-summary"}

    again = launch("sweep", *words)
    assert again.returncode == 0
    assert "validation/dice/mean: " in again.stdout
    assert slurm("squeue", "--noheader") == ""


def test_a_search_needs_nobody_on_the_login_node(
    trial_words: tuple[str, ...], tmp_path: Path
) -> None:
    words = ("--search=optuna", "--name=s", "--trials=2", *trial_words)
    done = launch("sweep", *words, "train.weight_decay=tag(log,interval(1e-6,1e-3))")
    assert done.returncode == 0, done.stderr
    sweep = Sweep.read(tmp_path / "runs" / "sweeps" / "s")
    assert not any(trial.words for trial in sweep.trials)
    watch(sweep, most=8)
    shown = launch("status", str(sweep.folder)).stdout
    assert {trial.state for trial in sweep.trials} <= OVER, shown
    assert len({trial.values["train.weight_decay"] for trial in sweep.trials}) == 2
    assert "best: trial" in shown
    assert children(tmp_path / "runs", "s", 3) == {"s-000", "s-001", "s-summary"}


def children(root: Path, parent: str, count: int) -> set[str]:
    """Runs in MLflow below this one; uploads may be late."""
    query = (
        "SELECT child.name FROM tags JOIN runs AS child USING (run_uuid) JOIN runs AS parent ON "
        "parent.run_uuid = tags.value WHERE tags.key = 'mlflow.parentRunId' AND parent.name = ?"
    )
    found: set[str] = set()
    deadline = time.monotonic() + 60
    while len(found) < count and time.monotonic() < deadline:
        with sqlite3.connect(root / "mlflow.db") as database:
            found = {name for (name,) in database.execute(query, [parent])}
        time.sleep(1)
    return found
