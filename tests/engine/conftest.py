from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from tests.engine.ranks import RankPool


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[RankPool]:
    """Kept for the whole test session."""
    with RankPool(2) as pool:
        yield pool


@pytest.fixture(autouse=True)
def on_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests compare with CPU results and run two ranks: GPUs of the machine stay out."""
    if "gpu" not in request.keywords:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture(autouse=True)
def _plain_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's stage 3 replaces PyTorch's linear layer, for the whole process."""
    monkeypatch.setattr(functional, "linear", functional.linear)
