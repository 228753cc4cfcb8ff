"""The memory of a step, followed on real and on fake tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from segresmamba.ops import tri_scan, workspace
from segresmamba.ops.workspace import workspace_bytes
from segresmamba.planner import Timeline
from segresmamba.planner.footprint import make_fake
from tests.ops.operands import tri_operands


def test_a_peak_counted_by_hand() -> None:
    x = torch.zeros(100)
    with Timeline() as timeline:
        y = x + 1  # 400 bytes
        y = y.view(10, 10) * 2  # 400 more, and the first are gone
        y += 1
        y = torch.cat([y, y])  # 800 more
    assert timeline.peak_bytes() == 1200
    assert y.shape == (20, 10)


def step(network: nn.Module, x: Tensor, *, leave_gradients_out: bool = False) -> Timeline:
    with Timeline() as timeline:
        network(x).sum().backward()
        if leave_gradients_out:
            timeline.leave_out(p.grad for p in network.parameters() if p.grad is not None)
    return timeline


def test_a_step_on_fake_tensors_peaks_where_a_real_one_does() -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv3d(2, 8, 3), nn.ReLU(), nn.Conv3d(8, 8, 3), nn.ReLU())

    shape = (1, 2, 16, 16, 16)
    real = step(network(), torch.randn(shape))
    mode, fake_network = FakeTensorMode(), network()
    make_fake(fake_network, mode)
    with mode:
        fake = step(fake_network, torch.empty(shape))
    assert fake.peak_bytes() == real.peak_bytes() > 0


def test_gradients_can_be_left_out() -> None:
    network = nn.Linear(1000, 1000, bias=False)
    with_them = step(network, torch.randn(1, 1000)).peak_bytes()
    network.zero_grad()
    without = step(network, torch.randn(1, 1000), leave_gradients_out=True).peak_bytes()
    assert without < 20_000
    assert 4_000_000 <= with_them < 4_020_000


def test_operators_with_a_formula_count_with_what_they_take_inside() -> None:
    mode = FakeTensorMode()
    o = tri_operands(1, 32, 4096, 16)
    with mode:
        fakes = {name: torch.empty(t.shape).requires_grad_() for name, t in o.items()}
    with mode, Timeline() as blind:
        tri_scan(**fakes, num_slices=16).backward(torch.empty(1, 32, 4096))
    with mode, Timeline(workspace_bytes) as seeing:
        y = tri_scan(**fakes, num_slices=16)
        y.backward(dy := torch.empty(1, 32, 4096))
    inside = workspace.tri_backward(dy, list(fakes.values()))
    assert seeing.peak_bytes() == y.nbytes + dy.nbytes + inside
    assert blind.peak_bytes() < 0.5 * seeing.peak_bytes()
