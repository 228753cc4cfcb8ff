"""Sweeps: what they expand to, what they remember, what they run again."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.__main__ import main
from launch.jobs.train_job import RunResult
from launch.run_state import FAILED, FINISHED, QUEUED, RUNNING, STOPPED, WAITING
from launch.sweeps import run
from launch.sweeps.folds import ALL, all_folds, fold_sweep_name
from launch.sweeps.grammar import trials_of
from launch.sweeps.plan_search import plan_search
from launch.sweeps.pool import Pool
from launch.sweeps.sweep import Sweep
from launch.sweeps.trial_job import TrialJob
from segresmamba.config import config_digest, former_digest
from segresmamba.errors import ConfigError, LaunchError
from segresmamba.tracking.journal import Journal
from tests.processes import started

FakeCommand = Callable[[str, str], None]


def planned(root: Path, *words: str) -> Sweep:
    return Sweep.from_overrides(["data=custom", "data.store=x", f"run.root={root}", *words], "s")


def record(sweep: Sweep, number: int, status: str) -> None:
    """What a run leaves in its folder."""
    folder = Path(sweep.trials[number].run)
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "journal.jsonl", name=folder.name)
    journal.append("status", status=status)
    journal.close()


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_grid_is_the_product_of_its_choices(sizes: list[int]) -> None:
    words = [f"k{i}={','.join(map(str, range(size)))}" for i, size in enumerate(sizes)]
    trials = trials_of(words)
    assert len({tuple(trial) for trial in trials}) == len(trials)
    expected = 1
    for size in sizes:
        expected *= size
    assert len(trials) == expected


def test_hydras_ranges_globs_and_lists_are_understood() -> None:
    assert trials_of(["seed=range(0,3)", "data.patch=[32,32,32]"]) == [
        [f"seed={seed}", "data.patch=[32,32,32]"] for seed in range(3)
    ]
    assert ["model=segresnet"] in trials_of(["model=glob(segres*)"])
    with pytest.raises(ConfigError, match="the sweep is empty"):
        trials_of(["model=glob(nothing*)"])


def test_all_folds_are_those_of_the_store_and_go_with_other_choices(
    tmp_path: Path, tiny_store: Path
) -> None:
    place = ["data=custom", f"data.store={tiny_store}", f"run.root={tmp_path}"]
    assert all_folds([*place, ALL, "seed=0,1"]) == [*place, "train.fold=0,1,2,3,4", "seed=0,1"]
    folds = all_folds([*place, ALL])
    sweep = Sweep.from_overrides(folds, fold_sweep_name(folds))
    assert [sweep.settings(trial) for trial in sweep.trials] == [
        f"train.fold={n}" for n in range(5)
    ]
    assert fold_sweep_name(folds) == fold_sweep_name(all_folds([ALL, *place]))
    with pytest.raises(ConfigError, match="runs of their own"):
        all_folds([*place, ALL, "run.name=mine"])


def test_the_folds_do_not_share_one_allocation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    granted = {"JOB_ID": "4711", "JOB_NUM_NODES": "1", "NTASKS_PER_NODE": "1"}
    for name, value in granted.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(sys, "argv", ["launch", "train", "--in-allocation", ALL])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "sbatch slurm/sweep.sh train.fold=all" in capsys.readouterr().err


def test_a_bad_trial_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.lr"):
        planned(tmp_path, "train.lr=1e-3,-1")
    with pytest.raises(LaunchError, match="share one run folder"):
        planned(tmp_path, "train.lr=1e-3,2e-3", "run.name=both")
    with pytest.raises(ConfigError, match="an interval is for a search"):
        planned(tmp_path, "train.lr=interval(1e-4,1e-3)")
    with pytest.raises(LaunchError, match="cannot be a folder's name"):
        Sweep.from_overrides(["seed=0,1"], "../up")
    assert list(tmp_path.iterdir()) == []


def with_preset(folder: Path, lr: float) -> None:
    (folder / "train").mkdir(parents=True, exist_ok=True)
    (folder / "train/mine.yaml").write_text(f"lr: {lr}\nlog_every: {int(lr * 1e4)}\n")


def test_a_trial_does_not_start_with_other_presets_than_the_sweep_began_with(
    tmp_path: Path,
) -> None:
    presets = tmp_path / "presets"
    with_preset(presets, 1e-3)
    words = ["train=mine", "seed=0,1", f"run.config_dir={presets}"]
    planned(tmp_path, *words).write()
    sweep = Sweep.read(tmp_path / "sweeps/s")
    trial = sweep.trials[1]
    sweep.refuse_changed_presets(trial, sweep.config(trial))
    with_preset(presets, 2e-3)
    with pytest.raises(LaunchError, match="a preset has changed") as caught:
        sweep.refuse_changed_presets(trial, sweep.config(trial))
    # What changes no result, here how often a run records, may be changed.
    assert caught.value.got == "train.lr: 0.001 -> 0.002"
    with pytest.raises(LaunchError, match="another sweep"):
        planned(tmp_path, *words)


def test_a_search_keeps_the_presets_that_it_began_with(tmp_path: Path) -> None:
    presets = tmp_path / "presets"
    with_preset(presets, 1e-3)
    words = ["data=custom", "data.store=x", f"run.root={tmp_path}", "train=mine"]
    words += [f"run.config_dir={presets}", "train.weight_decay=interval(0.1,0.2)"]
    plan_search(words, 2, "s").write()
    sweep = Sweep.read(tmp_path / "sweeps/s")
    trial = sweep.trials[1]
    trial.overrides = sweep.overrides(trial, {"train.weight_decay": 0.15})
    trial.digest = config_digest(sweep.config(trial))
    sweep.refuse_changed_presets(trial, sweep.config(trial))
    with_preset(presets, 2e-3)
    trial.digest = config_digest(sweep.config(trial))  # chosen only now
    with pytest.raises(LaunchError, match="a preset has changed") as caught:
        sweep.refuse_changed_presets(trial, sweep.config(trial))
    assert caught.value.got == "train.lr: 0.001 -> 0.002"


def test_a_sweep_of_the_version_that_counted_all_defaults_goes_on(tmp_path: Path) -> None:
    sweep = planned(tmp_path, "seed=0,1")
    sweep.composed = {}
    for trial in sweep.trials:
        trial.digest, trial.state = former_digest(sweep.config(trial)), STOPPED
    sweep.write()
    again = planned(tmp_path, "seed=0,1")
    assert [trial.state for trial in again.trials] == [STOPPED, STOPPED]
    old = Sweep.read(sweep.folder)
    old.refuse_changed_presets(old.trials[1], old.config(old.trials[1]))


def test_what_finished_is_known_from_the_run_without_a_manifest(tmp_path: Path) -> None:
    sweep = planned(tmp_path, "seed=range(0,4)")
    for number, status in enumerate(["finished", "failed", "preempted"]):
        record(sweep, number, status)
    sweep.refresh()
    assert [trial.state for trial in sweep.trials] == [FINISHED, FAILED, STOPPED, WAITING]


def test_a_trial_runs_as_long_as_its_process_holds_the_lock(tmp_path: Path) -> None:
    sweep = planned(tmp_path, "seed=0,1")
    lock = sweep.lock(sweep.trials[0])
    assert lock is not None
    sweep.refresh()
    assert [trial.state for trial in sweep.trials] == [RUNNING, WAITING]
    assert sweep.lock(sweep.trials[0]) is None
    os.close(lock)
    sweep.refresh()
    assert sweep.trials[0].state == STOPPED


def test_a_sweep_runs_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = planned(tmp_path, "seed=0,1")
    for number in range(2):
        record(sweep, number, "finished")

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    lock = sweep.lock(sweep.trials[0])
    assert lock is not None
    os.close(lock)
    assert run.run_sweep(sweep, None) == 0
    assert "2 finished" in capsys.readouterr().out


def test_a_sweep_has_one_controller_at_a_time(tmp_path: Path) -> None:
    sweep = planned(tmp_path, "seed=0,1")
    with (
        sweep.controlled(),
        pytest.raises(LaunchError, match="another process controls this sweep"),
        sweep.controlled(),
    ):
        pass
    with sweep.controlled():
        pass


def test_the_manifest_comes_back_and_refuses_another_sweep(tmp_path: Path) -> None:
    sweep = planned(tmp_path, "seed=0,1")
    sweep.trials[1].job = "4711"
    sweep.write()
    assert Sweep.read(sweep.folder) == sweep == planned(tmp_path, "seed=0,1")
    with pytest.raises(LaunchError, match="another sweep"):
        planned(tmp_path, "seed=0,2")


def test_failures_are_shown_with_their_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = planned(tmp_path, "seed=0,1")
    sweep.write()
    record(sweep, 0, "failed")
    Path(sweep.trials[0].run, "failure.txt").write_text("the sky is falling")
    monkeypatch.setattr(sys, "argv", ["launch", "status", str(sweep.folder)])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr()
    assert "trial 0 failed: the sky is falling" in shown.out
    assert "launch resume" in shown.err


def test_on_slurm_what_is_missing_is_one_array_and_queued_only_once(
    tmp_path: Path, fake_command: FakeCommand
) -> None:
    pending = "".join(f"4711_{task} PENDING 0 JobArrayTaskLimit\\n" for task in range(3))
    fake_command("sbatch", f"cat $1 >> {tmp_path}/scripts; echo Submitted batch job 4711")
    fake_command("srun", "exit 1")
    fake_command("squeue", f"case $* in *--me*) ;; *) printf '{pending}' ;; esac")
    words = ("cluster=slurm", "seed=range(0,4)")
    sweep = planned(tmp_path, *words)
    record(sweep, 2, "finished")
    assert run.run_sweep(sweep, max_parallel=2) == 0
    assert [trial.job for trial in sweep.trials] == ["4711_0", "4711_1", None, "4711_2"]
    script = (tmp_path / "scripts").read_text()
    assert "#SBATCH --array=0-2%2\n" in script
    assert f"#SBATCH --comment='segresmamba sweep {sweep.folder}'\n" in script
    link = Path(sweep.trials[3].run, "logs", "4711_2_0_log.out")
    assert link.resolve() == sweep.folder / "jobs" / link.name
    again = planned(tmp_path, *words)
    assert run.run_sweep(again, max_parallel=2) == 0
    assert [trial.state for trial in again.trials] == [QUEUED, QUEUED, FINISHED, QUEUED]
    assert (tmp_path / "scripts").read_text() == script


@pytest.mark.parametrize(
    ("job", "state"),
    [
        ("4711_0 RUNNING 0 None", RUNNING),
        ("4711_0 PENDING 0 Resources", QUEUED),
        ("4711_0 TIMEOUT 0 TimeLimit", FAILED),
        ("4711_0 CANCELLED 0 None", STOPPED),
    ],
)
def test_a_job_of_which_the_run_knows_nothing_says_where_its_trial_stands(
    tmp_path: Path, fake_command: FakeCommand, job: str, state: str
) -> None:
    fake_command("squeue", f"echo {job}")
    sweep = planned(tmp_path, "seed=0,1")
    sweep.trials[0].job, sweep.trials[0].state = "4711_0", QUEUED
    log = Path(sweep.trials[0].run, "logs", "4711_0_0_log.out")
    log.parent.mkdir(parents=True)
    log.write_text("DUE TO TIME LIMIT")
    sweep.refresh()
    assert [trial.state for trial in sweep.trials] == [state, WAITING]
    assert sweep.trials[0].read_failure() == ("DUE TO TIME LIMIT" if state == FAILED else "")


def test_a_controller_that_no_lock_keeps_away_takes_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = planned(tmp_path, "seed=0,1")
    with sweep.controlled():
        assert sweep.other_controller() is None
        (sweep.folder / "controller.txt").write_text("process 7 on elsewhere")
        assert not Pool(sweep, 1).run()
    said = capsys.readouterr()
    assert said.err == (
        "process 7 on elsewhere controls this sweep now: no more trials are started here\n"
    )
    assert said.out == ""
    with sweep.controlled():
        assert sweep.other_controller() is None


def test_a_trial_that_has_finished_does_not_fail_for_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = planned(tmp_path, "seed=0,1")
    sweep.write()
    manifest = sweep.folder / "manifest.json"
    job = TrialJob(sweep.folder, 0)
    # As a network file system shows a file that another machine has just replaced.
    manifest.write_bytes(manifest.read_bytes()[:-9])
    job._conclude(RunResult("finished", 9, "x", ""))
    assert "the sweep's study and summary are not up to date" in caplog.text


def test_a_killed_controller_leaves_its_trial_to_the_next_one(
    tmp_path: Path, real_overrides: list[str]
) -> None:
    """Real training: kill -9 of the controller; the same command does not start the trial twice.

    Nor does it start another one beside it.
    """
    words = [*real_overrides, "train.max_steps=1", "seed=0,1"]
    command = [sys.executable, "-m", "launch", "sweep", "--name", "s", *words]
    with started(command, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        while "started" not in first.stdout.readline():
            pass
        first.send_signal(signal.SIGKILL)
    sweep = Sweep.read(tmp_path / "sweeps" / "s")
    sweep.refresh()
    assert sweep.trials[0].state == RUNNING
    second = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    assert second.returncode == 0
    assert second.stdout.index("trial 0 finished") < second.stdout.index("trial 1 started")
    sweep.refresh()
    assert all(trial.state == FINISHED for trial in sweep.trials)
    starts = [len(list(Path(trial.run, "logs").iterdir())) for trial in sweep.trials]
    assert starts == [1, 1]
    assert subprocess.run(command, check=False).returncode == 0
    summary = json.loads((sweep.folder / "summary.json").read_text())
    assert summary["metrics"]["validation/dice/mean"]["n"] == 2
