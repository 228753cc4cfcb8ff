"""Operands of `tri_scan` as a layer passes them, on device meta: shapes and types alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from segresmamba.models import tom
from segresmamba.ops.kernels import TriOperands
from segresmamba.planner.footprint import make_fake


def layer_operands(
    channels: int, batch: int, side: int, dtype: torch.dtype
) -> tuple[TriOperands, Tensor]:
    """What a layer passes for a cube of this side under autocast, and the gradient it gets."""
    passed: list[Tensor] = []
    gradients: list[Tensor] = []

    def note(*operands: Tensor, **_: object) -> Tensor:
        passed.extend(operands)
        y_BEL = torch.empty_like(operands[0]).requires_grad_()
        y_BEL.register_hook(gradients.append)
        return y_BEL

    layer, mode = tom.TriOrientedMamba(channels), FakeTensorMode()
    make_fake(layer, mode)
    with pytest.MonkeyPatch.context() as patch, mode:
        patch.setattr(tom, "tri_scan", note)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y_BCDHW = layer(torch.empty(batch, channels, side, side, side))
        y_BCDHW.backward(torch.empty_like(y_BCDHW))
    like = [
        torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
        for t in (*passed, *gradients)
    ]
    return TriOperands(*like[:9]), like[9]
