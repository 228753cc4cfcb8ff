"""`python -m launch convert`: what Slurm is handed, and what the jobs make of a store."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import convert_job
from launch.__main__ import main
from launch.jobs.rank import load_job
from segresmamba.data import open_dataset, verify
from segresmamba.data.conversion.plan import ConversionPlan, ConversionRequest
from segresmamba.errors import ConfigError, DataError, LaunchError
from tests.conftest import write_nnunet_dataset

FakeCommand = Callable[[str, str], None]
GOLDEN = Path(__file__).parent / "golden" / "convert.sh"
SLURM = ["cluster=slurm", "cluster.cpus_per_task=1", "cluster.time_min=60"]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_nnunet_dataset(tmp_path / "raw", cases=3)


@pytest.fixture
def slurm(fake_command: FakeCommand) -> None:
    fake_command("sbatch", "echo Submitted batch job 4711")
    fake_command("srun", "exit 1")
    fake_command("squeue", "exit 0")


def launch(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["launch", "convert", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0


def jobs(store: Path, *numbers: str) -> list[convert_job.ConvertJob]:
    logs = store.with_name(f"{store.name}.logs")
    return [load_job(logs, number) for number in numbers]


def test_the_scripts_are_the_golden_ones(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    more = ["cluster.partition=cpu", "cluster.memory_gib=16", "cluster.setup=['module load x']"]
    launch(monkeypatch, raw, store, *SLURM, *more, "--tasks", 4, "--spacing", "median", "--dry-run")
    script = (
        capsys.readouterr().out.replace(sys.executable, "PYTHON").replace(str(tmp_path), "ROOT")
    )
    assert script == GOLDEN.read_text()
    assert not store.exists()


@pytest.mark.usefixtures("slurm")
def test_jobs_convert_their_shares_and_the_last_one_ends_the_store(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    launch(monkeypatch, raw, store, *SLURM, "--tasks", 2, "--crop")
    assert "3 cases in 2 jobs: 4711" in capsys.readouterr().out
    first, second, end = jobs(store, "4711_0", "4711_1", "4711")
    assert first() == "share 1 of 2: 2 cases converted"
    with pytest.raises(DataError, match="no converted dataset"):
        open_dataset(store)
    assert second() == "share 2 of 2: 1 cases converted"
    assert first() == "share 1 of 2: 0 cases converted"  # after a requeue
    assert "0 cases converted, 3 there already" in end()
    assert verify(store) == []
    assert open_dataset(store).preprocessing.crop
    launch(monkeypatch, raw, store, *SLURM, "--tasks", 2, "--crop")
    assert "3 there already" in capsys.readouterr().out  # at once, without a job


@pytest.mark.usefixtures("slurm")
def test_what_a_lost_job_left_is_done_at_the_end(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    launch(monkeypatch, raw, store, *SLURM, "--tasks", 3)
    _, second, end = jobs(store, "4711_0", "4711_1", "4711")
    second()
    assert "2 cases converted, 1 there already" in end()


@pytest.mark.usefixtures("slurm")
def test_a_bad_case_ends_its_job_and_the_last_one_with_a_screen(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    bad = raw / "labelsTr" / "case1.nii.gz"
    bad.write_bytes(bad.read_bytes()[:99])
    launch(monkeypatch, raw, store, *SLURM, "--tasks", 2)
    for job, code in zip(jobs(store, "4711_0", "4711_1", "4711"), (0, 2, 2), strict=True):
        if code:
            with pytest.raises(SystemExit) as ended:
                job()
            assert ended.value.code == code
            assert str(bad) in capsys.readouterr().err
        else:
            job()
    assert sorted(path.name for path in store.glob("case*")) == ["case0", "case2"]


@pytest.mark.usefixtures("slurm")
def test_a_conversion_keeps_others_out_while_its_jobs_do_not(raw: Path, tmp_path: Path) -> None:
    request = ConversionRequest(raw, tmp_path / "store")
    assert convert_job.prepare(request) == 3
    folder = ConversionPlan.from_request(request).folder()
    with folder.joined():
        assert convert_job.convert_share(request, 0, 2) == 2
        with pytest.raises(DataError, match="another conversion"):
            convert_job.finish(request)
    with folder.locked(), pytest.raises(DataError, match="another conversion"):
        convert_job.convert_share(request, 1, 2)


def test_a_conversion_that_is_queued_is_not_queued_again(
    raw: Path, tmp_path: Path, fake_command: FakeCommand
) -> None:
    fake_command("squeue", 'case "$*" in *--name=convert-store\\ *) echo 4711_0;; esac')
    with pytest.raises(LaunchError, match="in the queue already") as caught:
        convert_job.run(
            ConversionRequest(raw, tmp_path / "store"), convert_job.cluster_of(SLURM), 2
        )
    assert "scancel 4711_0" in caught.value.remedy
    assert not (tmp_path / "store").exists()


def test_what_slurm_refuses_leaves_nothing_behind(
    raw: Path, tmp_path: Path, fake_command: FakeCommand
) -> None:
    fake_command("srun", "exit 1")
    fake_command("squeue", "exit 0")
    cancelled = tmp_path / "cancelled"
    fake_command("scancel", f"echo $1 > {cancelled}")
    refused = "echo 'sbatch: error: no such partition' >&2; exit 1"
    request, cluster = ConversionRequest(raw, tmp_path / "store"), convert_job.cluster_of(SLURM)
    fake_command("sbatch", refused)
    with pytest.raises(LaunchError, match="refused"):
        convert_job.run(request, cluster, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "raw"]
    fake_command("sbatch", f"grep -q -e --array $1 || {{ {refused}; }}; echo batch job 4711")
    with pytest.raises(LaunchError, match="refused"):
        convert_job.run(request, cluster, 2)
    assert cancelled.read_text() == "4711\n"


def test_without_slurm_processes_here_convert(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(monkeypatch, raw, tmp_path / "store", "cluster=local", "--tasks", 2)
    out = capsys.readouterr().out
    assert "converting: 0 of 3 cases" in out
    assert "converting: 3 of 3 cases" in out
    assert verify(tmp_path / "store") == []


@pytest.mark.parametrize("word", ["train.lr=1", "cluster.nodes=4", "cluster.gpu=1"])
def test_words_that_are_not_of_a_conversion_are_refused(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert_job.cluster_of([*SLURM, word])
    assert caught.value.where == word.split("=", maxsplit=1)[0]
