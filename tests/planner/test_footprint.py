"""Counts that follow from shapes, checked by hand and between real and fake tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import UNETR, SegResNet, SwinUNETR
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segresmamba.models import SegResMamba
from segresmamba.planner.cuda_autocast import FP32_ON_CUDA_ALONE
from segresmamba.planner.footprint import Footprint, SavedBytes, fake_footprint, footprint
from tests.no_convolutions import NoConvolutions

GIB = 1 << 30


def small_segresmamba() -> nn.Module:
    return SegResMamba(in_channels=2, out_channels=3, dims=(8, 16), d_state=4)


def small_segresnet() -> nn.Module:
    return SegResNet(3, init_filters=8, in_channels=2, out_channels=3)


def small_swinunetr() -> nn.Module:
    return SwinUNETR(2, 3, feature_size=12)


class TwoHeads(nn.Module):
    """A 1x1x1 convolution with ReLU, a head in use and one that is not, deep supervision."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(2, 4, 1, bias=False)
        self.head = nn.Conv3d(4, 3, 1, bias=False)
        self.unused = nn.Conv3d(4, 5, 1)

    def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
        features = self.stem(x_BCDHW).relu()
        return [self.head(features), self.head(features)]


def test_counts_of_a_network_small_enough_to_count_by_hand() -> None:
    measured = footprint(TwoHeads(), torch.randn(1, 2, 4, 4, 4), "fp32")
    # Kept: the ReLU's output, 4 channels of 64 voxels, which both heads share.
    assert measured == Footprint(
        trained_parameters=2 * 4 + 4 * 3,
        dead_parameters=4 * 5 + 5,
        saved_bytes=4 * 64 * 4,
        macs=64 * (2 * 4 + 2 * 4 * 3),
    )


def test_autocast_keeps_its_copies_of_input_and_weights() -> None:
    measured = footprint(TwoHeads(), torch.randn(1, 2, 4, 4, 4), "bf16")
    assert measured.saved_bytes == 2 * (4 * 64 + 2 * 64 + 2 * 4 + 4 * 3)


def test_a_storage_counts_once_however_many_views_are_kept() -> None:
    weight = torch.randn(8, requires_grad=True)
    with SavedBytes([weight]) as saved:
        y = weight.exp()
        _ = y[:4].sin() + y[4:].cos()
    assert saved.total == 8 * 4


def test_a_checkpointed_region_counts_with_its_inputs() -> None:
    x = torch.randn(16, requires_grad=True)
    layers: list[Callable[[Tensor], Tensor]] = [torch.exp, torch.sin, torch.tanh]

    def run(y: Tensor) -> Tensor:
        for layer in layers:
            y = layer(y)
        return y

    with SavedBytes() as whole:
        run(x * 2)
    with SavedBytes() as checkpointed:
        checkpoint(run, x * 2, use_reentrant=False)
    # exp and tanh keep their outputs, sin its input, which is exp's output.
    assert (whole.total, checkpointed.total) == (2 * 64, 64)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("make", [small_segresmamba, small_segresnet, small_swinunetr])
def test_fake_tensors_measure_what_real_ones_do(
    make: Callable[[], nn.Module], precision: str
) -> None:
    shape = (1, 2, 64, 32, 32)  # a smaller one leaves SwinUNETR's deepest map with one voxel
    with NoConvolutions():
        real = footprint(make(), torch.randn(shape), precision)
    fake = fake_footprint(make(), shape, precision)
    # Real norms of bf16 tensors keep their statistics in fp32, fake ones in bf16: a token's two
    # numbers beside its 8 channels here, under 0.1 % at full width.
    assert fake.saved_bytes == pytest.approx(real.saved_bytes, rel=1e-2)
    assert (fake.macs, fake.trained_parameters, fake.dead_parameters) == (
        real.macs,
        real.trained_parameters,
        real.dead_parameters,
    )


def test_shared_parameters_stay_shared_and_count_once() -> None:
    network = TwoHeads()
    network.unused = network.head
    measured = fake_footprint(network, (1, 2, 4, 4, 4), "fp32")
    assert (measured.trained_parameters, measured.dead_parameters) == (2 * 4 + 4 * 3, 0)
    assert network.head.weight is network.unused.weight


@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize(
    ("make", "size", "saved_gib", "gmacs"),
    [
        (lambda: SegResNet(3, init_filters=32, in_channels=4, out_channels=3), 128, 2.01, 584.6),
        (lambda: SegResNet(3, init_filters=32, in_channels=4, out_channels=3), 96, 0.87, None),
        (lambda: UNETR(4, 3, (128, 128, 128)), 128, 1.47, 183.6),
        (lambda: SwinUNETR(4, 3, feature_size=48), 96, 3.72, None),
    ],
)
def test_the_figures_measured_on_real_tensors_before(
    make: Callable[[], nn.Module], size: int, saved_gib: float, gmacs: float | None
) -> None:
    measured = fake_footprint(make(), (1, 4, size, size, size), "bf16")
    assert measured.saved_bytes / GIB == pytest.approx(saved_gib, abs=0.005)
    assert gmacs is None or measured.macs / 1e9 == pytest.approx(gmacs, abs=0.05)


@pytest.mark.usefixtures("uninitialised")
def test_the_network_at_full_width_keeps_less_than_promised() -> None:
    network = SegResMamba(in_channels=4, out_channels=3)
    measured = fake_footprint(network, (1, 4, 128, 128, 128), "bf16")
    assert measured.dead_parameters == 0
    assert measured.saved_bytes / GIB < 1.5


def test_cuda_keeps_the_inputs_of_norms_in_fp32() -> None:
    def layers() -> nn.Module:
        return nn.Sequential(
            nn.Conv3d(2, 4, 1, bias=False), nn.GroupNorm(2, 4), nn.InstanceNorm3d(4)
        )

    shape = (1, 2, 4, 4, 4)
    cpu, cuda = (fake_footprint(layers(), shape, "bf16", device) for device in ("cpu", "cuda"))
    # Beside bf16 copies of input and weight, the inputs of both norms: 4 channels of 64 voxels, in
    # bf16, or in fp32, for the instance norm takes what the group norm gives. And statistics.
    common, voxels = 2 * (2 * 64 + 2 * 4), 2 * 4 * 64
    assert 0 < cpu.saved_bytes - common - 2 * voxels < 64
    assert 0 < cuda.saved_bytes - common - 4 * voxels < 64
    assert cpu.macs == cuda.macs


def test_the_lists_differ_where_pytorch_has_a_rule_for_cuda_alone() -> None:
    def has_rule(name: str, key: str) -> bool:
        spellings = [full for full in names if full.split(".")[0] == f"aten::{name}"]
        return any(torch._C._dispatch_has_kernel_for_dispatch_key(full, key) for full in spellings)

    names = torch._C._dispatch_get_all_op_names()
    for name in FP32_ON_CUDA_ALONE:
        assert has_rule(name, "AutocastCUDA"), name
        assert not has_rule(name, "AutocastCPU"), name
