from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import pytest
from rich.table import Table

from segresmamba.bench import Bench
from segresmamba.bench.result import Result, Status
from segresmamba.cli.main import _stopping, main
from segresmamba.engine.timing import StepTimer
from segresmamba.engine.trainer import Trainer
from segresmamba.tracking import TrackingError
from tests.conftest import write_nnunet_dataset
from tests.engine.tiny import MODEL, tiny_config


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of `segresmamba WORDS`."""
    monkeypatch.setattr(sys, "argv", ["segresmamba", *map(str, words)])
    with pytest.raises(SystemExit) as ending:
        main()
    return int(ending.value.code or 0)


def test_a_dataset_goes_from_nifti_to_a_predicted_label(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = write_nnunet_dataset(tmp_path / "raw", size=24, channels=1)
    store, runs, label = tmp_path / "store", tmp_path / "runs", tmp_path / "label.nii.gz"
    assert run(monkeypatch, "convert", raw, store, "--workers", 1) == 0
    assert run(monkeypatch, "verify", store) == 0
    settings = [
        "data=custom", f"data.store={store}", "data.patch=[32,32,32]", "data.workers=0",
        *MODEL, "train.max_steps=2", "train.warmup_steps=0", "train.precision=fp32",
        "tracking=none", f"run.root={runs}", "run.name=one",
    ]  # fmt: skip
    assert run(monkeypatch, "train", *settings) == 0
    assert run(monkeypatch, "evaluate", runs / "one") == 0
    image = raw / "imagesTr" / "case0_0000.nii.gz"
    assert run(monkeypatch, "report", runs, "--out", tmp_path / "report") == 0
    assert (tmp_path / "report" / "report.html").exists()
    assert run(monkeypatch, "predict", runs / "one", image, "--out", label) == 0
    assert label.exists()
    assert "ball" in capsys.readouterr().out


def test_verify_says_what_is_wrong_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    run(monkeypatch, "convert", write_nnunet_dataset(tmp_path / "raw", cases=2), store)
    shard = next(path for path in (store / "case1" / "0").rglob("c/0/0/0/0") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-100])
    assert run(monkeypatch, "verify", store) == 1
    assert "case1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["train", "train.lrr=1"], "train.lrr"),
        (["train", "data.store=/nowhere"], "/nowhere"),
        (["train", "data=mine", "--config-dir", "/nowhere"], "--config-dir"),
        (["train", "model.target=no_such_package:Net"], "model.target"),
        (["settings", "train.learning_rat"], "settings"),
        (["sample", "raw", "--kind", "mr"], "--kind"),
        (["evaluate", "/nowhere"], "/nowhere/config.yaml"),
        (["convert", "/nowhere", "/nowhere/store"], "/nowhere"),
        (["verify", "/nowhere"], "/nowhere"),
        (["sync", "/nowhere"], "/nowhere"),
        (["report", "/"], "journal.jsonl"),
        (["report", "nowhere"], "mlflow.db"),
        (["bench", "--models", "segresnet,nonet"], "nonet"),
        (["bench", "model=segresnet"], "--models"),
        (["bench", "data.store=/nowhere"], "/nowhere"),
        (["bench", "--models", "unet, segresnet,", "data.store=/nowhere"], "/nowhere"),
        (["plan"], "plan.gpu_memory_gib"),
        (["plan", "plan.gpu_memory_gib=40", "data.store=/nowhere"], "/nowhere"),
    ],
)
def test_a_users_mistake_is_one_screen_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    where: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *words) == 2
    screen = capsys.readouterr().err
    assert screen.startswith("error: ")
    assert where in screen
    assert "remedy:" in screen
    assert len(screen.splitlines()) < 24
    assert not list(tmp_path.iterdir())


def test_ctrl_c_saves_a_checkpoint_and_the_same_command_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_store: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = tiny_config(tiny_store, tmp_path)
    steps = Trainer._log_step

    def interrupted(trainer: Trainer, timer: StepTimer, lr: float) -> None:
        steps(trainer, timer, lr)
        if trainer.step == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("segresmamba.config.load_config", lambda words: config)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_log_step", interrupted)
        assert run(monkeypatch, "train") == 0
    assert "preempted at step 2" in capsys.readouterr().out
    assert (tmp_path / "tiny" / "checkpoints" / "step-00000002").is_dir()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run(monkeypatch, "train") == 0
    assert "finished at step 4" in capsys.readouterr().out


def test_a_second_ctrl_c_ends_at_once() -> None:
    requests: list[int] = []
    with _stopping(lambda: requests.append(1)):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert requests == [1]


def test_sync_says_so_when_mlflow_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(run: Path) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("segresmamba.tracking.sync", unreachable)
    (tmp_path / "journal.jsonl").touch()
    assert run(monkeypatch, "sync", tmp_path) == 75
    assert "no route to host" in capsys.readouterr().err


def test_sync_of_a_run_that_cannot_be_written_waits_for_no_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(run: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(run / "mlflow.json"))

    monkeypatch.setattr("segresmamba.tracking.sync", read_only)
    (tmp_path / "journal.jsonl").touch()
    assert run(monkeypatch, "sync", tmp_path) != 0
    assert "repeat the command when its folder can be written" in capsys.readouterr().err


def test_sync_takes_folders_of_runs_and_goes_on_after_one_that_cannot_be_sent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse_one(run: Path) -> None:
        if run.name == "b":
            raise TrackingError("deleted", where=run, got="b", remedy="restore it")

    monkeypatch.setattr("segresmamba.tracking.sync", refuse_one)
    runs = tmp_path / "runs"
    for name in "abc":
        (runs / name).mkdir(parents=True)
        (runs / name / "journal.jsonl").touch()
    (runs / "mlflow.db").touch()
    assert run(monkeypatch, "sync", runs / "mlflow.db", runs) == 2
    printed = capsys.readouterr()
    assert "neither a run nor a folder of runs" in printed.err
    assert "restore it" in printed.err
    assert printed.out.splitlines() == [f"{runs / name}: MLflow has everything" for name in "ac"]


@pytest.mark.slow
def test_bench_reports_a_network_that_runs_out_of_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    # The batch takes 16 GiB. Python and its libraries take 0.7 GiB here, 1.7 GiB with 64 threads.
    settings = ["data.patch=[1024,1024,1024]", "train.threads=1", "tracking=none"]
    words = ["bench", "--models", "segresmamba_small", "--memory-gib", 3, *settings]
    assert run(monkeypatch, *words) == 0
    assert "networks_cpu.md" in capsys.readouterr().out
    table = (tmp_path / "bench" / "networks_cpu.md").read_text()
    assert "out of memory: RuntimeError: " in table
    assert "can't allocate memory" in table
    assert "| 1.97 | 0.00 |" in table  # what was counted before stays


@pytest.mark.parametrize(
    ("statuses", "code"), [(("ok", "out of memory"), 0), (("ok", "failed"), 1)]
)
def test_bench_fails_if_a_network_did_and_not_if_memory_ran_out(
    monkeypatch: pytest.MonkeyPatch, statuses: tuple[Status, ...], code: int
) -> None:
    rows = [Result("unet", status) for status in statuses]
    finished = Bench(rows, [], Table(), "")
    monkeypatch.setattr("segresmamba.bench.bench", lambda *_, **__: finished)
    assert run(monkeypatch, "bench") == code


def test_a_passing_fault_is_one_screen_and_exit_code_75(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stale(run: Path, *_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", str(run))

    monkeypatch.setattr("segresmamba.engine.debug_batch.debug_batch", stale)
    assert run(monkeypatch, "debug-batch", tmp_path) == 75
    assert f"where:  {tmp_path}\n  got:    Stale file handle" in capsys.readouterr().err


def test_doctor_names_every_scan_backend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "doctor") == 0
    report = capsys.readouterr().out
    assert all(name in report for name in ("reference", "cpu", "triton", "mamba_ssm"))
