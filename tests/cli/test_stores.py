"""The real commands over stores that are no folders: an S3 server's bucket, a zip file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.failures import INTERRUPTED_CODE
from segresmamba.data import open_dataset
from tests.cli.test_main import run
from tests.data.server import KEYS, s3_server, upload
from tests.data.store.test_files import zipped
from tests.engine.tiny import MODEL, journal_losses

_STEPS = 60


def settings(store: str | Path, root: Path, *more: str) -> list[str]:
    return [
        "data=custom", f"data.store={store}", "data.patch=[32,32,32]", "data.workers=1", *MODEL,
        "train.warmup_steps=0", "train.log_every=1", "train.precision=fp32", "train.threads=1",
        "validation.overlap=0", "tracking=none", f"run.root={root}", "run.name=one", *more,
    ]  # fmt: skip


@pytest.fixture
def url(tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The tiny store in a bucket, its keys in the environment."""
    with s3_server() as (address, _):
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": address}).items():
            monkeypatch.setenv(name, value)
        yield upload(tiny_store, address, "folder/store.zarr")


@pytest.mark.slow
def test_a_run_from_a_bucket_is_stopped_goes_on_and_is_evaluated(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = settings(url, tmp_path, f"train.max_steps={_STEPS}", "train.batch_size=2")
    folder = tmp_path / "one"
    command = [sys.executable, "-m", "launch", "train", "cluster=local", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not (folder / "journal.jsonl").exists() or not journal_losses(folder):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=200)[0].startswith("preempted at step ")
    assert process.returncode == INTERRUPTED_CODE
    assert len(journal_losses(folder)) < _STEPS

    assert run(monkeypatch, "train", *words) == 0
    assert list(journal_losses(folder)) == list(range(1, _STEPS + 1))
    assert run(monkeypatch, "evaluate", folder) == 0
    results = json.loads((folder / "results.json").read_text())
    assert list(results["cases"]) == open_dataset(url).splits[0]["val"]


def test_plan_and_verify_take_a_bucket(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "plan", *settings(url, tmp_path), "plan.gpu_memory_gib=40") == 0
    assert "GiB" in capsys.readouterr().out
    assert run(monkeypatch, "verify", url) == 0
    assert f"{url} is sound" in capsys.readouterr().out


def test_a_bucket_that_refuses_is_one_screen(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    for words in (["verify", url], ["train", *settings(url, tmp_path)]):
        assert run(monkeypatch, *words) == 2
        screen = capsys.readouterr().err
        assert "refuses access" in screen
        assert len(screen.splitlines()) < 10


@pytest.mark.parametrize("inside", ["", "store.zarr/"], ids=["content", "folder"])
def test_a_run_from_a_zip_file(
    inside: str, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = zipped(tiny_store, tmp_path / "store.zarr.zip", inside=inside)
    words = settings(store, tmp_path, "train.max_steps=2", "train.validate_every=2")
    assert run(monkeypatch, "verify", store) == 0
    assert run(monkeypatch, "train", *words) == 0
    assert list(journal_losses(tmp_path / "one")) == [1, 2]
    assert run(monkeypatch, "evaluate", tmp_path / "one") == 0
