from __future__ import annotations

import logging
import resource
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from segresmamba.config import TrackingConfig
from segresmamba.errors import ConfigError
from segresmamba.storage.patience import patience
from segresmamba.tracking import NullTracker, Tracker, TrackingError, open_tracker, read_journal

OFFLINE = TrackingConfig(enabled=False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def open_offline(run: Path) -> Tracker:
    return open_tracker(run, OFFLINE, root=run.parent, run_name="run")


def test_every_call_is_a_record(run: Path) -> None:
    tracker = open_offline(run)
    tracker.params({"train": {"lr": 0.1}})
    tracker.tags({"backend": "cpu"})
    tracker.metrics({"loss": 0.5}, step=3, epoch=0.25)
    tracker.artifact(run / "overlays" / "a.png", "overlays")
    tracker.close("preempted")
    records = read_journal(run / "journal.jsonl")
    assert [(record.kind, record.body) for record in records[2:]] == [
        ("params", {"values": {"train": {"lr": 0.1}}}),
        ("tags", {"values": {"backend": "cpu"}}),
        ("metrics", {"step": 3, "epoch": 0.25, "values": {"loss": 0.5}}),
        ("artifact", {"path": "overlays/a.png", "folder": "overlays"}),
        ("status", {"status": "preempted"}),
    ]
    assert records[0].kind == "run"
    assert records[1].body["status"] == "running"


def test_numbers_of_numpy_and_torch_are_numbers(run: Path) -> None:
    tracker = open_offline(run)
    tracker.metrics({"a": np.float32(0.5), "b": torch.tensor(2.0), "c": 3}, step=0)
    tracker.close("finished")
    assert read_journal(run / "journal.jsonl")[2].body["values"] == {"a": 0.5, "b": 2.0, "c": 3.0}


def test_a_file_outside_the_run_folder_keeps_its_whole_path(run: Path, tmp_path: Path) -> None:
    tracker = open_offline(run)
    tracker.artifact(tmp_path / "elsewhere.png")
    tracker.close("finished")
    assert read_journal(run / "journal.jsonl")[2].body["path"] == str(tmp_path / "elsewhere.png")


def test_without_mlflow_the_journal_is_what_to_look_at(run: Path) -> None:
    tracker = open_offline(run)
    assert tracker.ui_hint() == str(run / "journal.jsonl")
    tracker.close("finished")
    assert not (run / "mlflow.json").exists()


def test_a_second_tracker_on_a_run_is_refused(run: Path) -> None:
    tracker = open_offline(run)
    with pytest.raises(TrackingError, match="another process is writing"):
        open_offline(run)
    tracker.close("finished")
    open_offline(run).close("finished")


def test_an_unknown_uri_is_refused_before_anything_is_written(run: Path) -> None:
    config = TrackingConfig(uri="ftp://host")
    with pytest.raises(ConfigError, match="such a URI"):
        open_tracker(run, config, root=run.parent, run_name="run")
    assert not run.exists()


def test_a_full_disk_never_reaches_training(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = open_offline(run)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((run / "journal.jsonl").stat().st_size, hard))
    try:
        for step in range(3):
            tracker.metrics({"loss": 0.5}, step=step)
        tracker.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    tracker.close("finished")
    assert len([message for message in caplog.messages if "being lost" in message]) == 1
    assert [record.kind for record in read_journal(run / "journal.jsonl")] == [
        "run",
        "status",
        "status",
    ]


def test_within_patience_a_full_disk_loses_no_record(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = open_offline(run)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (run / "journal.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))

    def make_room(_: float) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr("segresmamba.storage.patience.sleep", make_room)
    try:
        with patience(60):
            tracker.metrics({"loss": 0.5}, step=1)
    finally:
        make_room(0)
    tracker.close("finished")
    assert read_journal(run / "journal.jsonl")[2].body["values"] == {"loss": 0.5}


def test_an_uploader_that_cannot_start_never_reaches_training(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    tracker = open_tracker(run, TrackingConfig(), root=run.parent, run_name="run")
    tracker.metrics({"loss": 0.5}, step=0)
    tracker.close("finished")
    assert "nothing is sent to MLflow" in caplog.text
    assert len(read_journal(run / "journal.jsonl")) == 4


def test_the_null_tracker_takes_every_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker: Tracker = NullTracker()
    with caplog.at_level(logging.DEBUG):
        tracker.params({})
        tracker.tags({})
        tracker.metrics({}, step=0)
        tracker.artifact(tmp_path)
        tracker.flush()
        tracker.close("finished")
    assert (tracker.ui_hint(), caplog.text) == ("", "")
