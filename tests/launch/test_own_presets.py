"""Presets of the user's own in jobs and sweeps, which run in other folders and later."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.convert_job import cluster_of
from launch.jobs.train_job import TrainJob
from launch.launcher import start
from launch.sweeps.sweep import Sweep
from segresmamba.config import with_own_presets
from segresmamba.config.own_presets import say_preset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "presets"
    for group in ("data", "cluster"):
        (folder / group).mkdir(parents=True)
    (folder / "data/mine.yaml").write_text("store: mine.zarr\npatch: [8, 8, 8]\n")
    (folder / "cluster/ours.yaml").write_text("name: slurm\ntime_min: 30\npartition: big\n")
    return folder


def test_a_job_has_the_resolved_configuration_and_says_where_a_preset_came_from(
    folder: Path, make_job: Callable[..., TrainJob], capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job("place", *with_own_presets(["data=mine"], folder))
    (folder / "data/mine.yaml").unlink()
    assert start(job) == 0
    said = f"data=mine is {folder / 'data/mine.yaml'}, not a preset of the package"
    assert said in capsys.readouterr().err


def test_a_sweep_finds_the_presets_again_from_another_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.rename(tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    words = with_own_presets(["data=mine,sample", f"run.root={tmp_path}/runs"], None)
    Sweep.from_overrides(words, "both").write()
    monkeypatch.chdir("/")
    sweep = Sweep.read(tmp_path / "runs/sweeps/both")
    assert [sweep.config(trial).data.store for trial in sweep.trials] == [
        "mine.zarr",
        "data/sample.zarr",
    ]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("command", [["train"], ["sweep", "seed=1"]])
def test_the_commands_take_the_option(
    command: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    say_preset.cache_clear()
    words = [*command, "data=mine", "cluster=ours", "--config-dir", str(folder), "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["launch", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    shown = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    for file in ("data/mine", "cluster/ours"):
        assert sum(f"is {folder / file}.yaml, not a preset" in line for line in shown) == 1
    assert ("--partition=big" if command == ["train"] else "1 waiting") in capsys.readouterr().out


def test_a_conversion_takes_a_cluster_of_ones_own(folder: Path) -> None:
    assert cluster_of(["cluster=ours", "cluster.time_min=5"], folder).partition == "big"
