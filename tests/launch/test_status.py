"""What `python -m launch status` says of single runs."""

import fcntl
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.jobs.train_job import TrainJob
from launch.launcher import start
from launch.sweeps.sweep import Sweep
from segresmamba.tracking.journal import Journal

FakeCommand = Callable[[str, str], None]


@pytest.fixture
def status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """A function of the command's words: the lines that it prints."""

    def run(*words: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["launch", "status", f"--root={tmp_path}", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 0
        shown = capsys.readouterr()
        return [" ".join(line.split()) for line in (shown.out + shown.err).splitlines()]

    return run


def begin(folder: Path, step: int = 0) -> Journal:
    """A run under way, which this process writes."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    journal = Journal(folder / "journal.jsonl", name=folder.name)
    journal.append("params", values={"train": {"max_steps": 9}})
    if step:
        journal.append("metrics", step=step, epoch=None, values={"train/loss": 0.5})
        journal.append("metrics", step=step, epoch=None, values={"validation/dice/mean": 0.75})
    return journal


def test_each_run_says_how_far_it_is_and_what_to_type(
    tmp_path: Path, status: Callable[..., list[str]]
) -> None:
    running = begin(tmp_path / "running", step=4)
    for name in ("finished", "failed", "preempted"):
        journal = begin(tmp_path / name, step=9)
        journal.append("status", status=name)
        journal.close()
    (tmp_path / "failed" / "failure.txt").write_text("rank 1\nthe sky is falling\n")
    begin(tmp_path / "killed").close()
    assert status() == [
        f"{tmp_path}:",
        f"failed step 9/9 Dice 0.7500 0 min ago {tmp_path}/failed",
        f"finished step 9/9 Dice 0.7500 0 min ago {tmp_path}/finished",
        f"stopped 0 min ago {tmp_path}/killed",
        f"stopped step 9/9 Dice 0.7500 0 min ago {tmp_path}/preempted",
        f"running step 4/9 Dice 0.7500 0 min ago {tmp_path}/running",
        "",
        f"{tmp_path}/failed failed: rank 1",
        "the sky is falling",
        f"python -m launch resume {tmp_path}/failed goes on with it",
        f"python -m launch resume {tmp_path}/killed goes on with it",
        f"python -m launch resume {tmp_path}/preempted goes on with it",
    ]
    one = status(str(tmp_path / "running"))
    assert one == [f"running step 4/9 Dice 0.7500 0 min ago {tmp_path}/running"]
    running.close()


def test_a_queued_run_is_shown_with_its_newest_job_before_it_has_begun(
    make_job: Callable[..., TrainJob],
    tmp_path: Path,
    fake_command: FakeCommand,
    status: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number in (999, 4711):
        fake_command("sbatch", f"echo Submitted batch job {number}")
        start(make_job("mine", "cluster=slurm"))
    capsys.readouterr()
    fake_command("squeue", "echo 4711 PENDING 0 BeginTime")
    assert status()[1] == f"queued {tmp_path}/mine job 4711 PENDING (BeginTime)"
    fake_command("squeue", "echo 'error: Unable to contact slurm controller' >&2; exit 1")
    assert status()[1] == f"unknown {tmp_path}/mine job 4711 UNKNOWN (Slurm does not answer)"
    fake_command("squeue", "exit 1")
    assert status()[1] == f"waiting {tmp_path}/mine job 4711 unknown to Slurm"


def test_a_trial_that_waits_is_shown_with_the_reason(
    tmp_path: Path, fake_command: FakeCommand, status: Callable[..., list[str]]
) -> None:
    words = ["data=custom", "data.store=x", f"run.root={tmp_path}"]
    sweep = Sweep.from_overrides([*words, "seed=0,1,2"], "s")
    for trial in sweep.trials:
        trial.job = f"4711_{trial.number}"
    sweep.write()
    reasons = ("PENDING 0 JobHeldUser", "PENDING 0 PartitionTimeLimit", "RUNNING 0 None")
    lines = "; ".join(f"echo 4711_{number} {reason}" for number, reason in enumerate(reasons))
    fake_command("squeue", lines)
    shown = status()
    for line, end in zip(
        shown[1:4], ("_0 (JobHeldUser)", "_1 (PartitionTimeLimit)", "_2"), strict=True
    ):
        assert f"job 4711{end} seed=" in line
    assert any(line.startswith("trials will not start: PartitionTimeLimit") for line in shown)


def test_a_trial_is_shown_with_its_sweep_unless_it_is_asked_for(
    tmp_path: Path, fake_command: FakeCommand, status: Callable[..., list[str]]
) -> None:
    words = ["data=custom", "data.store=x", f"run.root={tmp_path}", "seed=0"]
    sweep = Sweep.from_overrides(words, "s")
    sweep.write()
    begin(Path(sweep.trials[0].run)).close()
    logs = Path(sweep.trials[0].run, "logs")
    logs.mkdir()
    (logs / "4711_0_0_log.out").touch()
    shown = status()
    assert shown[0] == f"{sweep.folder}:"
    assert sum(sweep.trials[0].run in line for line in shown) == 1
    fake_command("squeue", "echo 4711_0 PENDING 0 BeginTime")
    (line,) = status(sweep.trials[0].run)
    assert line.startswith("queued 0 min ago")
    assert line.endswith("job 4711_0 PENDING (BeginTime)")


def test_slurm_is_asked_once_for_all_sweeps_and_runs(
    tmp_path: Path, fake_command: FakeCommand, status: Callable[..., list[str]]
) -> None:
    for number in range(3):
        words = ["data=custom", "data.store=x", f"run.root={tmp_path}", f"seed={number}"]
        sweep = Sweep.from_overrides(words, f"s{number}")
        sweep.trials[0].job = f"471{number}"
        sweep.write()
    begin(tmp_path / "alone").close()
    (tmp_path / "alone" / "logs").mkdir()
    (tmp_path / "alone" / "logs" / "4713_0_log.out").touch()
    away = "echo 'error: Unable to contact slurm controller' >&2; exit 1"
    for name in ("squeue", "sacct"):
        fake_command(name, f"echo $* >>{tmp_path}/{name}.asked; {away}")
    for options in ([], ["--json"]):
        assert " ".join(status(*options)).count("unknown") >= 4
        for name in ("squeue", "sacct"):
            asked = tmp_path / f"{name}.asked"
            assert asked.read_text().count("--jobs=4710,4711,4712,4713") == 1
            assert len(asked.read_text().splitlines()) == 1
            asked.unlink()


def test_a_folder_without_runs_says_so(tmp_path: Path, status: Callable[..., list[str]]) -> None:
    assert status() == [f"no sweeps and no runs in {tmp_path}"]


def test_looking_at_a_run_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    begin(tmp_path / "run").close()
    path = tmp_path / "run" / "journal.jsonl"
    with path.open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.1, fcntl.flock, (looking.fileno(), fcntl.LOCK_UN)).start()
        Journal(path, name="run").close()


@pytest.fixture
def three_runs(tmp_path: Path) -> None:
    """One that runs, one that has failed, one that has finished."""
    runs = [("failed", 0.3, 0.002, 300), ("finished", 0.5, 0.001, 200), ("other", None, None, 100)]
    for name, dice, energy_kwh, ago_s in runs:
        journal = begin(tmp_path / name)
        if dice is not None:
            reached = {"validation/dice/mean": dice, "energy/energy_kwh": energy_kwh}
            journal.append("metrics", step=9, epoch=None, values=reached)
        journal.append("status", status="finished" if name == "other" else name)
        journal.close()
        path = tmp_path / name / "journal.jsonl"
        os.utime(path, (path.stat().st_mtime - ago_s,) * 2)


@pytest.mark.usefixtures("three_runs")
@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ["failed", "finished", "other"]),
        (["--sort", "dice"], ["finished", "failed", "other"]),
        (["--sort", "energy"], ["failed", "finished", "other"]),
        (["--sort", "recent"], ["other", "finished", "failed"]),
        (["--failed"], ["failed"]),
        (["--running"], []),
        (["--running", "--failed"], ["failed"]),
    ],
)
def test_runs_are_filtered_and_sorted(
    options: list[str], names: list[str], status: Callable[..., list[str]]
) -> None:
    shown = json.loads("\n".join(status("--json", *options)))
    assert [Path(row["folder"]).name for row in shown] == names


@pytest.mark.usefixtures("three_runs")
def test_an_empty_answer_says_so(tmp_path: Path, status: Callable[..., list[str]]) -> None:
    assert status("--running")[-1] == "none of 3 run(s) is running"
    assert status("--failed", str(tmp_path / "finished")) == ["none of 1 run(s) is failed"]
    assert json.loads("\n".join(status("--json", "--running"))) == []


@pytest.mark.usefixtures("three_runs")
def test_a_script_gets_numbers_and_a_reader_columns(
    tmp_path: Path, status: Callable[..., list[str]]
) -> None:
    words = ["data=custom", "data.store=x", f"run.root={tmp_path}", "seed=0"]
    sweep = Sweep.from_overrides(words, "s")
    sweep.write()
    begin(Path(sweep.trials[0].run), step=4).close()
    trial, failed, *_ = json.loads("\n".join(status("--json")))
    assert (trial["sweep"], trial["trial"], trial["dice"]) == ("s", 0, 0.75)
    assert (failed["state"], failed["dice"], failed["energy_wh"]) == ("failed", 0.3, 2.0)
    assert "failed Dice 0.3000 2.00 Wh 5 min ago" in " ".join(status())
    # A sweep of which nothing is asked for is not shown, unless it is named.
    assert f"{sweep.folder}:" not in status("--running")
    assert f"{sweep.folder}:" in status("--running", str(sweep.folder))
