"""The formulas of ops.workspace against what the triton backend allocates, without a GPU."""

from __future__ import annotations

import pytest
import torch

from segresmamba.ops import chunking, workspace
from segresmamba.ops.triton import tri_backward, tri_forward
from segresmamba.planner import Timeline
from tests.ops.layers import layer_operands

MIB = 1 << 20


@pytest.fixture(autouse=True)
def user_sizes(monkeypatch):
    for name, size in {"CHUNK": 128, "LANES": 32, "CONV_TOKENS": 256}.items():
        monkeypatch.setattr(chunking, name, size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("channels", "side", "batch"),
    [(48, 64, 1), (48, 64, 8), (48, 32, 1), (192, 16, 4), (48, 27, 2)],
)
def test_formulas_count_what_is_allocated(channels, side, batch, dtype):
    operands, dy_BDL = layer_operands(channels, batch, side, dtype)
    with Timeline() as forward:
        tri_forward(operands, side)
    with Timeline() as backward:
        tri_backward(dy_BDL, operands, side)
    for timeline, expected in (
        (forward, workspace.tri_forward(*operands)),
        (backward, workspace.tri_backward(dy_BDL, list(operands))),
    ):
        assert timeline.peak_bytes() == pytest.approx(expected, rel=0.03, abs=MIB)


@pytest.mark.parametrize("batch", [1, 8])
def test_the_largest_layer_takes_at_most_16_bytes_per_element(batch):
    operands, dy_BDL = layer_operands(48, batch, 64, torch.bfloat16)
    with Timeline() as timeline:
        tri_backward(dy_BDL, operands, 64)
    assert timeline.peak_bytes() <= 16 * operands.x_BDL.numel()


def test_a_gradient_with_channels_in_a_row_is_copied():
    operands, dy_BDL = layer_operands(48, 2, 16, torch.bfloat16)
    in_a_row = dy_BDL.mT.contiguous().mT
    more = workspace.tri_backward(in_a_row, list(operands))
    assert more == workspace.tri_backward(dy_BDL, list(operands)) + dy_BDL.nbytes
