from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from segresmamba.config import TrackingConfig, load_config
from segresmamba.config.tracking import PASSWORD_VARIABLE, server_login, with_password
from segresmamba.errors import ConfigError
from segresmamba.storage.run_folder import write_config

URI = "postgresql://me:s%40fe@host:5432/db"


@pytest.fixture(autouse=True)
def _no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "")


def test_a_password_is_in_no_file_and_no_pickle(tmp_path: Path) -> None:
    config = load_config([f"tracking.uri='{URI}'"])
    write_config(config, tmp_path / "config.yaml")
    assert config.tracking.uri == "postgresql://me@host:5432/db"
    assert "s%40fe" not in (tmp_path / "config.yaml").read_text()
    assert b"s%40fe" not in pickle.dumps(config)


def test_the_environment_hands_the_password_on() -> None:
    stored = TrackingConfig(uri=URI).uri
    assert stored is not None
    assert os.environ[PASSWORD_VARIABLE] == "s%40fe"
    assert with_password(stored) == URI


def test_a_server_gets_its_user_and_password_apart_from_the_address() -> None:
    stored = TrackingConfig(uri="https://me:s%40fe@host/prefix").uri
    assert stored is not None
    assert server_login(stored) == ("https://host/prefix", "me", "s@fe")


@pytest.mark.parametrize("uri", ["postgresql://me@host/db", "sqlite:////a@b/mlflow.db"])
def test_a_uri_without_a_password_stays_as_it_is(uri: str) -> None:
    assert TrackingConfig(uri=uri).uri == uri
    assert with_password(uri) == uri
    assert os.environ[PASSWORD_VARIABLE] == ""


def test_a_password_in_the_query_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError) as error:
        load_config(["tracking.uri='postgresql://host/db?user=me&password=s3cret'"])
    assert error.value.where == "tracking.uri"
    assert "s3cret" not in error.value.screen()
