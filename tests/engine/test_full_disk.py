"""A disk that is really full while a run saves: a small tmpfs, filled up by another file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from segresmamba.engine import train
from segresmamba.engine.trainer import Trainer
from segresmamba.errors import sort_error
from segresmamba.storage import patience
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking import MlflowSource, sync
from tests.engine.tiny import journal_losses, tiny_config

SIZE = 16 << 20
SETTINGS = ("train.checkpoint_every=2", "train.keep_last=9")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def filler(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fill the disk before the checkpoint of step 4; gives the file that fills it."""
    path, save = small_disk / "filler", Trainer._save

    def save_on_a_full_disk(trainer: Trainer) -> None:
        if trainer.step == 4:
            with suppress(OSError), path.open("xb", 0) as file:
                while True:
                    file.write(bytes(4096))
        save(trainer)

    monkeypatch.setattr(Trainer, "_save", save_on_a_full_disk)
    return path


def test_a_training_waits_for_space_and_goes_on(
    filler: Path,
    tiny_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(patience, "sleep", lambda _: filler.write_bytes(b""))
    root = filler.parent
    assert train(tiny_config(tiny_store, root, *SETTINGS))["status"] == "finished"
    run = RunFolder(root / "tiny")
    assert run.saved_steps() == [2, 4]
    assert sorted(journal_losses(run.path)) == [1, 2, 3, 4]
    said = [r.getMessage() for r in caplog.records if "cannot be written" in r.getMessage()]
    assert len(said) == 1
    assert "rank-00000.pt cannot be written: No space left on device: " in said[0]


def test_a_disk_that_stays_full_ends_the_run_as_a_passing_fault_and_spares_its_checkpoint(
    filler: Path, tiny_store: Path
) -> None:
    root = filler.parent
    config = tiny_config(tiny_store, root, *SETTINGS, "data.patience_s=0")
    with pytest.raises(OSError, match="No space left") as raised:
        train(config)
    code, text = sort_error(raised.value)
    assert code == 75
    assert "error: the disk is full\n" in text
    assert "step-00000004" in text
    assert " bytes, and 0 are free\n" in text
    assert RunFolder(root / "tiny").saved_steps() == [2]
    filler.write_bytes(b"")
    assert train(config)["status"] == "finished"


def test_a_full_disk_under_mlflows_database_costs_no_value(
    small_disk: Path, tiny_store: Path, tmp_path: Path
) -> None:
    full = small_disk / "filler"
    with suppress(OSError), full.open("xb", 0) as file:
        while True:
            file.write(bytes(4096))
    uri = f"sqlite:///{small_disk}/mlflow.db"
    config = tiny_config(
        tiny_store, tmp_path, *SETTINGS, "tracking.enabled=true", f"tracking.uri='{uri}'"
    )
    assert train(config)["status"] == "finished"
    run = tmp_path / "tiny"
    full.unlink()
    sync(run)
    (history,) = MlflowSource(uri).histories(config.tracking.experiment, tmp_path / "downloads")
    sent = {point.step: point.value for point in history.curves["train/loss"]}
    assert sent == pytest.approx(journal_losses(run))
