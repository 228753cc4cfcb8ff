"""`python -m launch predict`: processes here, what Slurm is handed, and what its jobs do."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.jobs.rank import load_job
from tests.data.raw import write_nifti
from tests.inference.conftest import OWN_NETWORK, noise, write_run

FakeCommand = Callable[[str, str], None]
SLURM = ["cluster=slurm", "cluster.cpus_per_task=1", "cluster.time_min=60"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("models") / "run", model=OWN_NETWORK)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "imagesTs").mkdir()
    for case in "abc":
        write_nifti(tmp_path / "imagesTs" / f"{case}_0000.nii.gz", noise(17, 18, 19))
    return tmp_path / "imagesTs"


def launch(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["launch", "predict", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def done(out: Path) -> set[str]:
    cases = json.loads((out / "predict.json").read_text())["cases"]
    assert {path.name for path in out.glob("*.nii.gz")} == {f"{case}.nii.gz" for case in cases}
    return set(cases)


@pytest.mark.slow
def test_processes_of_this_machine_share_the_cases(
    model: Path, images: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (images / "bad_0000.nii.gz").touch()
    out = tmp_path / "out"
    assert launch(monkeypatch, model, images, out, "cluster=local", "--tasks", 2) == 1
    said = capsys.readouterr()
    assert "3 cases segmented, 0 were done" in said.out
    assert "1 cases failed:\n  bad: a file is truncated or damaged" in said.err
    assert done(out) == {"a", "b", "c"}
    (images / "bad_0000.nii.gz").unlink()
    assert launch(monkeypatch, model, images, out) == 0
    assert "0 cases segmented, 3 were done" in capsys.readouterr().out


@pytest.fixture
def slurm(fake_command: FakeCommand) -> None:
    fake_command("sbatch", "echo Submitted batch job 4711")
    fake_command("srun", "exit 1")
    fake_command("squeue", "exit 0")


@pytest.mark.usefixtures("slurm")
def test_jobs_of_an_array_segment_their_shares(
    model: Path, images: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)  # the jobs may start elsewhere
    assert launch(monkeypatch, model, "imagesTs", "out", *SLURM, "--tasks", 2) == 0
    assert "3 cases in 2 jobs: 4711" in capsys.readouterr().out
    monkeypatch.chdir("/")
    first, second = (load_job(tmp_path / "out.logs", f"4711_{number}") for number in range(2))
    assert first() == "share 1 of 2: 2 cases segmented, 0 were done"
    assert done(tmp_path / "out") == {"a", "c"}
    assert first.checkpoint()
    assert first() == "share 1 of 2: 0 cases segmented, 2 were done"  # after a requeue
    (images / "b_0000.nii.gz").write_bytes(b"damaged")
    with pytest.raises(SystemExit) as ended:
        second()
    assert ended.value.code == 1
    assert "b: a file is truncated" in capsys.readouterr().err


def test_a_dry_run_shows_the_script_and_changes_nothing(
    model: Path, images: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = [model, images, tmp_path / "out", "--dry-run"]
    assert launch(monkeypatch, *words, *SLURM, "--tasks", 4) == 0
    script = capsys.readouterr().out
    for line in ("--array=0-2", "--gpus-per-node=1", "--job-name=predict-out", "--time=60"):
        assert f"#SBATCH {line}" in script
    assert launch(monkeypatch, *words) == 0
    assert "cluster=local: here, on auto" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.logs").exists()
    assert launch(monkeypatch, model, tmp_path / "gone", tmp_path / "out", "--dry-run") == 2
    assert "there is no such input" in capsys.readouterr().err
    assert launch(monkeypatch, model, images, model, *SLURM, "--dry-run") == 2
    assert "the output folder holds something else" in capsys.readouterr().err


def test_what_cannot_be_meant_is_refused_before_anything_is_queued(
    model: Path, images: Path, tmp_path: Path, fake_command: FakeCommand,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fake_command("squeue", 'case "$*" in *--name=predict-out*) echo 4711;; esac')
    words = [model, images, tmp_path / "out"]
    assert launch(monkeypatch, *words, *SLURM) == 2
    assert "scancel 4711" in capsys.readouterr().err
    assert launch(monkeypatch, *words, "cluster.nodes=2") == 2
    assert "`python -m launch predict` has no such setting" in capsys.readouterr().err
    assert launch(monkeypatch, model, tmp_path / "gone", tmp_path / "out", *SLURM) == 2
    assert "there is no such input" in capsys.readouterr().err
    assert launch(monkeypatch, model, images, tmp_path / "label.nii.gz") == 2
    assert "jobs write to a folder" in capsys.readouterr().err
    assert not {tmp_path / "out", tmp_path / "label.nii.gz"} & set(tmp_path.iterdir())
