from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segresmamba.engine.distributed import join
from segresmamba.engine.zero import ZeroEngine
from segresmamba.task.ranks import Ranks
from tests.engine.tiny import tiny_config


class _Network(nn.Module):
    """A layer that learns, one that is never called, one that is frozen, one behind detach()."""

    def __init__(self) -> None:
        super().__init__()
        self.learns, self.forgotten, self.frozen, self.detached = (
            nn.Conv3d(1, 1, 1, bias=False) for _ in range(4)
        )
        self.frozen.requires_grad_(False)

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        side: Tensor = self.detached(x_BCDHW).detach()
        logits: Tensor = self.frozen(self.learns(x_BCDHW)) + side
        return logits


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_weights_that_no_gradient_reaches_are_named_after_the_first_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stage: int
) -> None:
    config = tiny_config(tmp_path, tmp_path, f"train.zero_stage={stage}", "train.accumulation=2")
    ranks = Ranks.from_environment()
    join(ranks, threads=1)
    engine = ZeroEngine(_Network(), config, ranks)
    texts = []
    for _ in range(6):
        logits = engine.forward(torch.randn(1, 1, 4, 4, 4))
        assert isinstance(logits, Tensor)
        engine.backward(logits.square().mean(), 1e-3)
        texts.append(caplog.text)
        caplog.clear()
    assert "2 of 3 weight tensors" in texts[1]
    assert "in the first step: forgotten.weight, detached.weight (2 parameters)" in texts[1]
    assert not any("weight tensors" in text for text in (texts[0], *texts[2:]))
