from __future__ import annotations

import json
from pathlib import Path

import pytest

from segresmamba.config import TrackingConfig
from segresmamba.config.tracking import PASSWORD_VARIABLE
from segresmamba.errors import ConfigError
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking import TrackingError, run_hint, tracking_uri
from segresmamba.tracking.mlflow.state import UploadState, open_state


def state(uri: str) -> UploadState:
    return UploadState(uri=uri, experiment="e", artifacts="file:///a")


def test_the_default_is_a_database_in_the_root_by_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(TrackingConfig(), Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_a_relative_database_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrackingConfig(uri="sqlite:///shared/mlflow.db")
    assert tracking_uri(config, Path("runs")) == f"sqlite:///{tmp_path}/shared/mlflow.db"


@pytest.mark.parametrize(
    "uri",
    [
        "http://host:5000",
        "https://mlflow.example.org/prefix",
        "postgresql+psycopg://user@host:5432/db",
        "mysql://host/db",
    ],
)
def test_servers_and_databases_are_taken_as_they_are(uri: str) -> None:
    assert tracking_uri(TrackingConfig(uri=uri), Path("runs")) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "file:///runs/mlruns",
        "mlruns",
        "ftp://host",
        "",
        "http://",
        "http://host:port",
        "s3://b",
    ],
)
def test_an_unknown_uri_is_refused_before_anything_is_written(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError) as error:
        open_state(tmp_path, TrackingConfig(uri=uri), tmp_path)
    assert error.value.where == "tracking.uri"
    assert error.value.got == uri
    assert "http://host:5000" in error.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_saved_state_is_continued(tmp_path: Path) -> None:
    saved = open_state(tmp_path, TrackingConfig(), tmp_path)
    saved.run_id, saved.sent_bytes, saved.last_step = "abc", 10, {"loss": 3}
    saved.save(tmp_path)
    assert open_state(tmp_path, TrackingConfig(), tmp_path) == saved


@pytest.mark.parametrize("change", [{"uri": "http://host:5000"}, {"experiment": "another"}])
def test_another_destination_starts_from_the_beginning(
    tmp_path: Path, change: dict[str, str]
) -> None:
    saved = open_state(tmp_path, TrackingConfig(), tmp_path)
    saved.run_id, saved.sent_bytes = "abc", 10
    saved.save(tmp_path)
    moved = open_state(tmp_path, TrackingConfig(**change), tmp_path)
    assert (moved.run_id, moved.sent_bytes) == (None, 0)


def test_a_changed_digit_of_a_saved_state_is_noticed(tmp_path: Path) -> None:
    written = state("https://host")
    written.sent_bytes = 1234
    written.save(tmp_path)
    file = RunFolder(tmp_path).mlflow
    file.write_text(file.read_text().replace("1234", "1284"))
    with pytest.raises(TrackingError, match="checksum"):
        UploadState.load(tmp_path)


def test_a_state_that_a_power_loss_emptied_keeps_no_run_from_starting(tmp_path: Path) -> None:
    RunFolder(tmp_path).mlflow.write_text("")
    assert open_state(tmp_path, TrackingConfig(), tmp_path).run_id is None
    with pytest.raises(TrackingError) as error:
        UploadState.load(tmp_path)
    assert error.value.where == str(RunFolder(tmp_path).mlflow)


def test_the_hint_for_a_database_is_a_command() -> None:
    assert state("sqlite:////a b/mlflow.db").ui_hint == (
        "mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db'"
    )


def test_the_hint_leads_to_the_page_of_the_runs_once_there_is_one() -> None:
    found = state("sqlite:////a/mlflow.db")
    found.experiment_id = "7"
    command, comment = found.ui_hint.split("  # then ")
    assert command == "mlflow ui --backend-store-uri sqlite:////a/mlflow.db"
    assert comment.startswith("http://127.0.0.1:5000/#/experiments/7/runs?")
    assert "workflowType=machine_learning" in comment


def test_the_hint_for_a_server_is_the_page_of_the_run() -> None:
    found = state("http://host:5000")
    assert found.ui_hint == "http://host:5000"
    found.experiment_id, found.run_id = "1", "abc"
    assert found.ui_hint == "http://host:5000/#/experiments/1/runs/abc"


def test_a_password_is_used_but_neither_stored_nor_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "")
    found = open_state(tmp_path, TrackingConfig(uri="postgresql://me:secret@host/db"), tmp_path)
    found.save(tmp_path)
    assert "secret" not in RunFolder(tmp_path).mlflow.read_text()
    assert found.ui_hint == "mlflow ui --backend-store-uri postgresql://me@host/db"
    assert UploadState.load(tmp_path).connection_uri == "postgresql://me:secret@host/db"


def test_a_password_that_an_earlier_version_stored_is_not_shown() -> None:
    assert state("postgresql://me:secret@host/db").shown_uri == "postgresql://me:***@host/db"


def test_a_server_that_runs_for_the_root_is_found_unless_another_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow-server.json").write_text('{"uri": "http://n1:22291", "job": "8"}')
    assert tracking_uri(TrackingConfig(), tmp_path) == "http://n1:22291"
    named = TrackingConfig(uri="http://other:5000")
    assert tracking_uri(named, tmp_path) == "http://other:5000"


BROKEN = {
    "torn": '{"uri": "http://n1:222',
    "empty": "",
    "a list": "[]",
    "no address": '{"job": "8"}',
    "a number": '{"uri": 7}',
    "no host": '{"uri": "http://"}',
    "no port": '{"uri": "http://n1:port"}',
    "half a host": '{"uri": "http://[n1"}',
    "nested": "[" * 100_000,
    "not text": "\udcff",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_address_of_a_server_counts_as_none_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    (tmp_path / "mlflow-server.json").write_text(content, errors="surrogateescape")
    for _ in range(2):
        found = open_state(tmp_path / "mine", TrackingConfig(), tmp_path)
        assert found.uri == f"sqlite:///{tmp_path}/mlflow.db"
    (said,) = caplog.messages
    assert f"{tmp_path}/mlflow-server.json cannot be read" in said


def test_a_state_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path).mlflow.write_text('{"uri": ' + "[" * 100_000)
    with pytest.raises(TrackingError, match="nested too deeply"):
        UploadState.load(tmp_path)


@pytest.mark.parametrize("change", [{"sent_bytes": "all"}, {"last_step": [1]}, {"uri": None}])
def test_a_state_with_a_wrong_type_keeps_no_run_from_starting(
    tmp_path: Path, change: dict[str, object]
) -> None:
    open_state(tmp_path, TrackingConfig(), tmp_path).save(tmp_path)
    path = RunFolder(tmp_path).mlflow
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TrackingError):
        UploadState.load(tmp_path)
    assert open_state(tmp_path, TrackingConfig(), tmp_path).sent_bytes == 0


def test_a_run_that_has_not_begun_has_a_hint(tmp_path: Path) -> None:
    hint = run_hint(tmp_path / "mine", TrackingConfig(), tmp_path)
    assert hint == f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db"
    journal = run_hint(tmp_path / "mine", TrackingConfig(enabled=False), tmp_path)
    assert journal == str(tmp_path / "mine" / "journal.jsonl")
    assert list(tmp_path.iterdir()) == []
