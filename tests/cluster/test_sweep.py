"""Sweeps as arrays of jobs: a controller that is killed, trials that are lost, and a search."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from launch.run_state import FINISHED, OVER, STOPPED
from launch.sweeps.sweep import Sweep
from segresmamba.data import convert
from segresmamba.tracking import sync
from tests.cluster.jobs import REPOSITORY, Job, launch, losses, release, run, slurm, wait_until
from tests.conftest import write_nnunet_dataset


@pytest.fixture
def trial_words(words: tuple[str, ...], tmp_path: Path) -> tuple[str, ...]:
    """A small experiment of one rank, with a network that needs neither MONAI nor numba."""
    small = (
        "cluster.nodes=1",
        "model=segresmamba_nomamba",
        "model.dims=[8,8]",
        "train.max_steps=3",
    )
    light = ("tracking.system_metrics=false", "tracking.log_model=false")
    same = (word for word in words if not word.startswith("model."))
    return (*same, *small, *light, "train.validate_every=1", f"run.root={tmp_path}/runs")


def kill_the_controller_once_it_has_submitted(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """`kill -9` in the one moment in which Slurm knows of jobs that the manifest does not.

    Returns:
        The array that nobody has written down.
    """
    deadly = tmp_path / "bin"
    deadly.mkdir()
    (deadly / "sbatch").write_text('#!/bin/sh\n/usr/bin/sbatch "$@"\nkill -9 $PPID\n')
    (deadly / "sbatch").chmod(0o755)
    before = arrays()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{deadly}:{os.environ['PATH']}")
        done = launch(*command)
    assert done.returncode == -9
    (forgotten,) = arrays() - before
    return forgotten


def arrays() -> set[str]:
    """What is in the queue, by the number that the jobs of an array share."""
    return set(slurm("squeue", "--noheader", "--format=%F").split())


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
    command = ("sweep", *words)
    forgotten = kill_the_controller_once_it_has_submitted(command, tmp_path, monkeypatch)

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

    again = launch(*command)
    assert again.returncode == 0
    assert "validation/dice/mean: " in again.stdout
    assert slurm("squeue", "--noheader") == ""


def test_a_cross_validation_goes_on_with_the_folds_that_are_missing(
    trial_words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(write_nnunet_dataset(tmp_path / "raw", cases=3), tmp_path / "store")
    words = (*trial_words, f"data.store={tmp_path}/store", "train.fold=all")
    command = ("train", "--max-parallel=2", *words)
    forgotten = kill_the_controller_once_it_has_submitted(command, tmp_path, monkeypatch)
    done = launch(*command)
    assert "3 trials, 2 at once" in done.stdout, done.stderr
    assert slurm("squeue", "--noheader", f"--jobs={forgotten}") == ""
    (folder,) = (tmp_path / "runs" / "sweeps").iterdir()
    sweep = Sweep.read(folder)
    slurm("scancel", str(sweep.trials[2].job))
    watch(sweep, most=2)
    assert [trial.state for trial in sweep.trials] == [FINISHED, FINISHED, STOPPED]
    first = (Path(sweep.trials[0].run) / "journal.jsonl").read_bytes()

    assert "1 trials, 1 at once" in launch(*command).stdout
    sweep = Sweep.read(folder)
    watch(sweep, most=2)
    assert {trial.state for trial in sweep.trials} == {FINISHED}, launch("status").stdout
    assert (Path(sweep.trials[0].run) / "journal.jsonl").read_bytes() == first
    assert {sweep.config(trial).train.fold for trial in sweep.trials} == {0, 1, 2}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["metrics"]["validation/dice/mean"]["n"] == 3
    runs = {Path(trial.run).name for trial in sweep.trials}
    assert children(tmp_path / "runs", folder.name, 4) == {*runs, f"{folder.name}-summary"}


def test_a_sweep_above_the_limits_is_queued_in_parts_that_follow_each_other(
    trial_words: tuple[str, ...], tmp_path: Path
) -> None:
    account = ("sacctmgr", "-i", "modify", "user", "root", "where", "account=lab", "set")
    slurm(*account, "maxsubmitjobs=15", "maxwall=-1")
    small = ("cluster.account=lab", "seed=range(0,21)")  # an array has at most 20 jobs
    done = launch("sweep", "--name=s", "--max-parallel=1", *trial_words, *small)
    # The limit leaves room for ten and the small job that queues what follows.
    assert "10 trials, 1 at once" in done.stdout, done.stderr
    array, follower = (re.search(f"{what}job (\\d+)", done.stdout, re.M) for what in ("^", "then "))
    assert array
    assert follower
    slurm("scancel", array[1])
    Job(follower[1], tmp_path).wait_for("COMPLETED")
    trials = Sweep.read(tmp_path / "runs" / "sweeps" / "s").trials
    parts = Counter(str(trial.job).split("_")[0] for trial in trials)
    assert list(parts.values()) == [10, 11]
    assert next(iter(parts)) == array[1]


def test_a_search_needs_nobody_on_the_login_node(
    trial_words: tuple[str, ...], tmp_path: Path
) -> None:
    words = ("--search=optuna", "--name=s", "--trials=2", *trial_words)
    # Jobs may be queued there, but none starts.
    slurm("scontrol", "update", "partitionname=low", "state=down")
    try:
        done = launch("sweep", *words, "train.weight_decay=tag(log,interval(1e-6,1e-3))")
        assert done.returncode == 0, done.stderr
        sweep = Sweep.read(tmp_path / "runs" / "sweeps" / "s")
        assert not any(trial.overrides for trial in sweep.trials)
    finally:
        slurm("scontrol", "update", "partitionname=low", "state=up")
    watch(sweep, most=8)
    shown = launch("status", str(sweep.folder)).stdout
    assert {trial.state for trial in sweep.trials} <= OVER, shown
    assert len({trial.values["train.weight_decay"] for trial in sweep.trials}) == 2
    assert "best: trial" in shown
    assert children(tmp_path / "runs", "s", 3) == {"s-000", "s-001", "s-summary"}


def children(root: Path, parent: str, count: int) -> set[str]:
    """Runs in MLflow below this one."""
    # A busy machine may keep a job from sending everything in its time. This sends what is left.
    for journal in root.glob("*/journal.jsonl"):
        sync(journal.parent)
    query = (
        "SELECT child.name FROM tags JOIN runs AS child USING (run_uuid) JOIN runs AS parent ON "
        "parent.run_uuid = tags.value WHERE tags.key = 'mlflow.parentRunId' AND parent.name = ?"
    )
    found: set[str] = set()
    deadline = time.monotonic() + 200
    while len(found) < count and time.monotonic() < deadline:
        with closing(sqlite3.connect(root / "mlflow.db")) as database:
            found = {name for (name,) in database.execute(query, [parent])}
        time.sleep(1)
    return found
