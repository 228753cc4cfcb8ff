"""A search whose study is in a real PostgreSQL."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from launch.sweeps.search_space import Space
from launch.sweeps.study import Standing, Study
from segresmamba.errors import LaunchError
from tests.tracking.mlflow.test_postgresql import pytestmark, uri  # noqa: F401


def test_the_password_comes_from_the_environment(
    uri: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    password = urlsplit(uri).password or ""
    storage, space = uri.replace(f":{password}@", "@"), Space.from_overrides(["seed=range(0,9)"])
    with pytest.raises(LaunchError, match="no password supplied"):
        Study("s", tmp_path, space, storage)
    monkeypatch.setenv("PGPASSWORD", unquote(password))
    Study("s", tmp_path, space, storage).catch_up([Standing(0, {"seed": 3}, {1: 0.5}, "finished")])
    again = Study("s", tmp_path, space, storage)
    assert [trial.value for trial in again._study.trials] == [0.5]
