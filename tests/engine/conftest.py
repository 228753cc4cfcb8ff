from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.engine.ranks import RankPool
from tests.engine.tiny import tiny_config


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[RankPool]:
    """Kept for the whole test session."""
    with RankPool(2) as pool:
        yield pool


@pytest.fixture(scope="session")
def _finished(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from segresmamba.engine import train

    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        train(tiny_config(tiny_store, root, "train.checkpoint_every=2"))
    return root / "tiny"


@pytest.fixture
def finished_run(_finished: Path, tmp_path: Path) -> Path:
    """`tiny_config` in `tmp_path`, trained on one rank, with checkpoints of steps 2 and 4.

    It is trained once; each test has a copy.
    """
    return Path(shutil.copytree(_finished, tmp_path / "tiny"))


@pytest.fixture
def killed_run(finished_run: Path) -> Path:
    """`finished_run`, killed at the very end: the journal does not say that it has finished."""
    journal = finished_run / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if '"finished"' not in line))
    return finished_run


@pytest.fixture(autouse=True)
def on_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests compare with CPU results and run two ranks: GPUs of the machine stay out."""
    if "gpu" not in request.keywords:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
