from __future__ import annotations

import logging
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from segresmamba.config import TrackingConfig
from segresmamba.errors import ConfigError
from segresmamba.storage.patience import patience
from segresmamba.tracking import (
    JournalHeldError,
    NullTracker,
    Tracker,
    TrackingError,
    open_tracker,
    read_journal,
)
from segresmamba.tracking.mlflow.state import UploadState, open_state

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


def test_a_copied_run_goes_on_as_a_run_of_its_own_and_a_renamed_one_as_itself(run: Path) -> None:
    def header(folder: Path) -> dict[str, object]:
        return read_journal(folder / "journal.jsonl")[0].body

    tracker = open_offline(run)
    tracker.metrics({"loss": 0.5}, step=3)
    tracker.close("finished")
    before = header(run)
    renamed = run.rename(run.with_name("renamed"))
    open_offline(renamed).close("finished")
    assert header(renamed) == before
    renamed.rename(run)
    copy = run.with_name("copy")
    shutil.copytree(run, copy)
    open_offline(copy).close("finished")
    assert header(run) == before
    assert header(copy)["name"] == "copy"
    assert header(copy)["id"] != before["id"]
    own = header(copy)
    open_offline(copy).close("finished")
    assert header(copy) == own
    open_offline(run).close("finished")
    assert header(run) == before
    records = read_journal(copy / "journal.jsonl")
    assert [record.body["step"] for record in records if record.kind == "metrics"] == [3]
    assert not any("damaged_journal" in record.body.get("values", {}) for record in records)


def test_a_copied_run_is_sent_to_mlflow_from_its_beginning(run: Path) -> None:
    config = TrackingConfig(uri="http://127.0.0.1:9")  # nobody answers
    open_offline(run).close("finished")
    copy = run.with_name("copy")
    shutil.copytree(run, copy)
    known = open_state(copy, config, run.parent)
    known.journal = str(read_journal(run / "journal.jsonl")[0].body["id"])
    known.run_id, known.sent_bytes = "of-the-original", 10
    known.save(copy)
    tracker = open_tracker(copy, config, root=run.parent, run_name="copy")
    state = UploadState.load(copy)
    tracker.close("preempted")
    assert (state.run_id, state.sent_bytes) == (None, 0)
    assert state.journal == read_journal(copy / "journal.jsonl")[0].body["id"]


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


def test_a_run_that_has_begun_again_elsewhere_is_left_to_the_other_process(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The locks of two machines do not meet on every file system.
    monkeypatch.setattr("segresmamba.storage.locks.fcntl.flock", lambda _fd, _operation: None)
    elder, newer = open_offline(run), open_offline(run)
    newer.params({})
    with pytest.raises(JournalHeldError):
        elder.metrics({"train/loss": 1.0}, step=1)
    elder.close("failed")
    newer.close("finished")
    statuses = [r.body["status"] for r in read_journal(run / "journal.jsonl") if r.kind == "status"]
    assert statuses == ["running", "running", "finished"]


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
