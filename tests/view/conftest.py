"""A run over a small store, with best weights and results, as training and evaluation leave it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.view.runs import evaluated_run


@pytest.fixture(scope="session")
def viewed_run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two channels and two classes that holds three cases out."""
    return evaluated_run(tmp_path_factory.mktemp("viewed"), tiny_store.parent / "raw")
