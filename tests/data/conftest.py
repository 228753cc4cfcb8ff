from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from segresmamba.data import convert
from tests.data.raw import write_raw


@pytest.fixture(scope="session")
def sound_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(tmp_path_factory.mktemp("sound") / "raw", channels=2)


@pytest.fixture(scope="session")
def sound_store(sound_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases of different shapes, two channels of int16, two classes. Not to be changed."""
    store = tmp_path_factory.mktemp("sound") / "store"
    convert(sound_raw, store)
    return store


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Three cases of one channel, to be changed at will."""
    return write_raw(tmp_path / "raw")


@pytest.fixture
def store(sound_store: Path, tmp_path: Path) -> Path:
    """A copy of the sound store, to be damaged at will."""
    return Path(shutil.copytree(sound_store, tmp_path / "store"))
