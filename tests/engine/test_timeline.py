"""The memory of a step, followed on real and on fake tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from segresmamba.engine.measure import make_fake
from segresmamba.engine.planner import Timeline


def test_a_peak_counted_by_hand() -> None:
    x = torch.zeros(100)
    with Timeline() as timeline:
        y = x + 1  # 400 bytes
        y = y.view(10, 10) * 2  # 400 more, and the first are gone
        y += 1
        y = torch.cat([y, y])  # 800 more
    assert timeline.peak_bytes() == 1200
    assert y.shape == (20, 10)


def test_what_an_operator_takes_inside_counts_while_it_runs() -> None:
    def scratch(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
        return 1000 if name.startswith("exp") else 0

    x = torch.zeros(100)
    with Timeline(scratch) as timeline:
        x.exp().sin()
    assert timeline.peak_bytes() == 400 + 1000


def step(network: nn.Module, x: Tensor) -> Timeline:
    with Timeline() as timeline:
        network(x).sum().backward()
        timeline.these_are_gradients(p.grad for p in network.parameters() if p.grad is not None)
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


def test_a_share_of_the_gradients() -> None:
    timeline = step(nn.Linear(1000, 1000, bias=False), torch.randn(1, 1000))
    whole, half, none = (timeline.peak_bytes(share) for share in (1.0, 0.5, 0.0))
    assert whole >= 4_000_000
    assert whole - half == 2_000_000
    assert none < 20_000
