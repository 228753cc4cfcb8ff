"""`segresmamba warmup` compiles what a configuration needs, for GPUs that need not be here."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from segresmamba.cli.main import app
from segresmamba.errors import ConfigError
from segresmamba.task import warm_up

Compiled = list[tuple[str, torch.device, int | None]]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    """What would have been compiled; the compiler itself is tested in tests/ops/triton."""
    made: Compiled = []

    def note(
        network: nn.Module, precision: str, device: torch.device, capability: int | None
    ) -> None:
        made.append((precision, device, capability))

    monkeypatch.setattr(warm_up, "compile_scans", note)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/opt/kernels")
    return made


def test_kernels_are_compiled_for_each_capability(compiled: Compiled) -> None:
    words = ["model.dims=[8,16]", "train.precision=bf16"]
    result = CliRunner().invoke(
        app, ["warmup", *words, "--capability", "8.0", "--capability", "9.0"]
    )
    assert result.exit_code == 0, result.output
    assert compiled == [("bf16", torch.device("meta"), number) for number in (80, 90)]
    assert "/opt/kernels" in result.output


def test_without_a_gpu_a_capability_is_needed(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(app, ["warmup", "model.dims=[8,16]"])
    assert isinstance(result.exception, ConfigError)
    assert "--capability 9.0" in result.exception.remedy
    assert not compiled
