"""Searches: how they are planned, and with real training how they stop, go on and prune."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launch.__main__ import main
from launch.jobs.train_job import RunResult
from launch.run_state import FAILED, FINISHED, METRIC, PRUNED, STOPPED, WAITING
from launch.sweeps.plan_search import plan_search
from launch.sweeps.run import run_sweep
from launch.sweeps.study import STARTUP_PRUNING
from launch.sweeps.sweep import Sweep
from launch.sweeps.trial_job import TrialJob, catch_up, chosen
from segresmamba.config import Config
from segresmamba.errors import ConfigError, LaunchError
from segresmamba.tracking.journal import Journal, read_journal
from tests.processes import started

LR = "train.lr=tag(log,interval(1e-4,1e-2))"


def planned(root: Path, *words: str, trials: int | None = 3, storage: str | None = None) -> Sweep:
    fixed = ["data=custom", "data.store=x", f"run.root={root}"]
    return plan_search([*fixed, *words], trials, "s", storage)


def record(sweep: Sweep, number: int, *dice: float, status: str = "finished") -> None:
    """What a trial that has its settings leaves in its run folder: a validation per step."""
    folder = Path(chosen(sweep.folder, number).run)
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "journal.jsonl", name=folder.name)
    for step, value in enumerate(dice, start=1):
        journal.append("metrics", step=step, epoch=None, values={METRIC: value})
    journal.append("status", status=status)
    journal.close()


def test_a_search_is_its_space_and_may_grow(tmp_path: Path) -> None:
    sweep = planned(tmp_path, LR)
    assert [Path(trial.run).name for trial in sweep.trials] == ["s-000", "s-001", "s-002"]
    sweep.write()
    assert Sweep.read(sweep.folder) == sweep
    assert len(planned(tmp_path, LR, "cluster=slurm", trials=5).trials) == 5
    with pytest.raises(LaunchError, match="another sweep"):
        planned(tmp_path, LR, trials=2)
    with pytest.raises(LaunchError, match="another sweep"):
        planned(tmp_path, "train.lr=interval(1e-4,1e-2)")
    with pytest.raises(LaunchError, match="another sweep"):
        Sweep.from_overrides(
            ["data=custom", "data.store=x", f"run.root={tmp_path}", "seed=0,1,2"], "s"
        )


@pytest.mark.parametrize(
    ("words", "trials", "storage", "problem"),
    [
        ([LR], None, None, "no end of its own"),
        (["seed=0,1"], 3, None, "fewer points"),
        ([LR, "run.name=mine"], 3, None, "a name of its own"),
        ([LR, "train.fold=all"], 3, None, "a name of its own"),
        ([LR], 3, "postgresql://me:secret@db/x", "a password in the URL"),
        ([LR], 3, "study.db", "not the URL of a database"),
        (["train.lr=interval(-1,1)"], 3, None, "train.lr"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_before_anything_is_written(
    tmp_path: Path, words: list[str], trials: int | None, storage: str | None, problem: str
) -> None:
    with pytest.raises((LaunchError, ConfigError), match=problem) as error:
        planned(tmp_path, *words, trials=trials, storage=storage)
    assert "secret" not in error.value.screen()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "screen"),
    [
        (["--search", "grid"], "'grid' is not one of 'optuna'"),
        (["--search", "optuna", "--trials", "0"], "greater than or equal to 1"),
        (["--trials", "3"], "a grid has as many trials as it has points"),
        (["--storage", "sqlite:///x.db"], "got: sqlite:///x.db"),
    ],
)
def test_options_that_do_not_fit_are_one_screen_and_exit_code_2(
    options: list[str],
    screen: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["launch", "sweep", *options, "seed=0,1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert screen in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_a_storage_that_is_unreachable_leaves_nothing_behind(tmp_path: Path) -> None:
    sweep = planned(tmp_path, LR, storage="postgresql://me@127.0.0.1:1/none")
    with pytest.raises(LaunchError, match="cannot be used"):
        run_sweep(sweep, None)
    assert list(tmp_path.iterdir()) == []


def test_settings_that_contradict_each_other_are_left_out(tmp_path: Path) -> None:
    """Every value is possible, but not with every other."""
    words = ["train.warmup_steps=int(interval(0,900))", "train.max_steps=range(500,1001,250)"]
    sweep = planned(tmp_path, *words, "train.lr=1e-3,1e-4", trials=5)
    sweep.write()
    for number in range(5):
        trial = chosen(sweep.folder, number)
        assert trial == chosen(sweep.folder, number)
        assert int(trial.values["train.warmup_steps"]) < int(trial.values["train.max_steps"])


def test_what_the_trials_reached_is_shown_and_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = planned(tmp_path, LR, trials=5)
    sweep.write()
    record(sweep, 0, 0.5, 0.7)
    record(sweep, 1, 0.8, 0.6)
    record(sweep, 2, 0.1, status="preempted")
    record(sweep, 3, status="finished")  # without a validation
    (pruned := Sweep.read(sweep.folder).trials[2]).pruned_at = 1
    sweep.record(pruned)
    monkeypatch.setattr(sys, "argv", ["launch", "status", str(sweep.folder)])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    assert "1 failed, 2 finished, 1 pruned, 1 waiting" in shown
    assert f"best: trial 0, {METRIC} 0.7000: train.lr=" in shown
    sweep = Sweep.read(sweep.folder)
    sweep.refresh()
    states = [trial.state for trial in sweep.trials]
    assert states == [FINISHED, FINISHED, PRUNED, FAILED, WAITING]
    # However often: nothing is told twice.
    for _ in range(2):
        study = catch_up(sweep)._study
        assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED", "RUNNING"]


def test_a_trial_takes_its_resources_from_the_latest_command(tmp_path: Path) -> None:
    planned(tmp_path, LR).write()
    before = chosen(tmp_path / "sweeps" / "s", 0)
    again = planned(tmp_path, LR, "cluster.time_min=600")
    again.write()
    assert again.config(again.trials[0]).cluster.time_min == 600
    assert again.trials[0].values == before.values
    assert again.trials[0].digest == before.digest


class Engine:
    """A stand-in for the engine that records a validation, or none, and has finished."""

    def __init__(self, sweep: Sweep, *dice: float) -> None:
        self.sweep, self.dice = sweep, dice

    def request_stop(self) -> None:
        raise AssertionError("nothing to compare with")

    def train(self, config: Config) -> dict[str, Any]:
        record(self.sweep, 0, *self.dice)
        return {"status": "finished", "step": 1, "folder": "s-000", "ui_hint": ""}


def test_a_trial_that_cannot_be_compared_fails_and_one_that_can_is_summed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    sweep = planned(tmp_path, LR, "tracking=none", trials=1)
    sweep.write()
    job = TrialJob(sweep.folder, 0)
    with pytest.raises(LaunchError, match="without the number that the search compares"):
        job._train(Engine(sweep), job.resolved_config())
    assert not (sweep.folder / "summary.json").exists()
    assert job._train(Engine(sweep, 0.25), job.resolved_config()).status == "finished"
    assert json.loads((sweep.folder / "summary.json").read_text())["best"][METRIC] == 0.25
    assert (sweep.folder / "journal.jsonl").exists()  # of the summary's own run
    assert [trial.value for trial in catch_up(sweep)._study.trials] == [0.25]


def test_a_trial_whose_preset_has_changed_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    preset = tmp_path / "presets/train/mine.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text("weight_decay: 0.1\n")
    words = (LR, "tracking=none", "train=mine", f"run.config_dir={tmp_path / 'presets'}")
    sweep = planned(tmp_path, *words, trials=1)
    sweep.write()
    preset.write_text("weight_decay: 0.2\n")
    job = TrialJob(sweep.folder, 0)
    with pytest.raises(LaunchError, match="a preset has changed"):
        job._train(Engine(sweep, 0.25), job.resolved_config())
    assert not (tmp_path / "s-000").exists()


def test_a_pruned_trial_that_slurm_starts_again_ends_at_once(tmp_path: Path) -> None:
    sweep = planned(tmp_path, LR)
    sweep.write()
    trial = chosen(sweep.folder, 0)
    trial.pruned_at = 7
    sweep.record(trial)
    assert TrialJob(sweep.folder, 0)() == RunResult("pruned", 7, trial.run, "")


@contextmanager
def controller(*words: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m launch sweep`, whose trials end with the test."""
    command = [sys.executable, "-m", "launch", "sweep", *words]
    with started(command, stdout=subprocess.PIPE) as process:
        yield process


def steps(trial: Path) -> list[int]:
    path = trial / "journal.jsonl"
    records = read_journal(path) if path.exists() else []
    return [r.body["step"] for r in records if "train/loss" in r.body.get("values", ())]


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 250
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stopped_search_goes_on_with_its_trial_and_prunes_it_once_it_falls_behind(
    tmp_path: Path, real_overrides: list[str]
) -> None:
    words = [*real_overrides, "train.max_steps=2000", "train.validate_every=1", LR]
    count = STARTUP_PRUNING + 1
    trial, folder = tmp_path / "s-000", tmp_path / "sweeps" / "s"
    with controller("--search", "optuna", "--trials", str(count), "--name", "s", *words) as first:
        wait_for(lambda: steps(trial))
        first.send_signal(signal.SIGINT)
        assert first.wait(120) == 130
    sweep = Sweep.read(folder)
    sweep.refresh()
    assert [t.state for t in sweep.trials] == [STOPPED] + [WAITING] * STARTUP_PRUNING
    stopped = steps(trial)
    assert (trial / "checkpoints" / f"step-{stopped[-1]:08d}").is_dir()

    for number in range(1, count):
        record(sweep, number, *[0.99] * 500)
    command = [sys.executable, "-m", "launch", "resume", str(folder)]
    resumed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert resumed.returncode == 0, resumed.stderr
    assert "trial 0 pruned, Dice 0." in resumed.stdout
    found = Sweep.read(folder)
    assert found.settings(found.trials[0]) == sweep.settings(sweep.trials[0])
    assert found.trials[0].pruned_at is not None
    assert steps(trial) == list(range(1, len(steps(trial)) + 1))
    assert len(steps(trial)) > len(stopped)
    assert (trial / "checkpoints" / f"step-{steps(trial)[-1]:08d}").is_dir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best"][METRIC] == 0.99

    assert run_sweep(found, None) == 0
    assert len(list((trial / "logs").iterdir())) == 2  # no third start
    assert catch_up(found)._study.trials[0].state.name == "PRUNED"
