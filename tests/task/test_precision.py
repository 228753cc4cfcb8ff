from __future__ import annotations

import pytest
import torch
from torch import nn

from segresmamba.config import TrainConfig
from segresmamba.task.precision import Autocast, LossScaler, set_gpu_arithmetic, spare_small_maps


def scaled_backward(network: nn.Module, scaler: LossScaler, loss: torch.Tensor) -> None:
    network.zero_grad()
    scaler.scaled(loss).backward()


def test_gradients_leave_the_scaler_at_their_true_size() -> None:
    network, x = nn.Linear(3, 1), torch.randn(4, 3)
    network(x).mean().backward()
    true = network.weight.grad.clone()
    scaler = LossScaler(network, torch.device("cpu"))
    scaled_backward(network, scaler, network(x).mean())
    torch.testing.assert_close(network.weight.grad, true)


def test_an_overflow_counts_as_zero_and_halves_the_scale() -> None:
    network = nn.Linear(3, 1)
    scaler = LossScaler(network, torch.device("cpu"))
    scale = scaler.scale
    # A root has an infinite slope at 0, where it is itself finite.
    scaled_backward(network, scaler, (0 * network.weight).sum().sqrt() + network.bias.sum())
    scaler.update(made=torch.tensor(True))
    assert not network.weight.grad.any()
    assert network.bias.grad == 1
    assert scaler.scale == scale / 2


def test_a_loss_that_is_not_finite_makes_the_gradient_nan_and_leaves_the_scale() -> None:
    network = nn.Linear(3, 1)
    scaler = LossScaler(network, torch.device("cpu"))
    before = scaler.state()
    scaled_backward(network, scaler, network(torch.full((1, 3), torch.inf)).sum())
    scaler.update(made=torch.tensor(False))
    assert network.weight.grad.isnan().all()
    assert scaler.state() == before
    scaled_backward(network, scaler, network(torch.ones(1, 3)).sum())
    assert network.weight.grad.isfinite().all()


def test_the_scale_doubles_after_many_clean_steps_and_survives_a_restore() -> None:
    scaler = LossScaler(nn.Linear(1, 1), torch.device("cpu"))
    for _ in range(LossScaler._GROWTH_INTERVAL - 1):
        scaler.update(made=torch.tensor(True))
    restored = LossScaler(nn.Linear(1, 1), torch.device("cpu"))
    restored.restore(scaler.state())
    before = restored.scale
    restored.update(made=torch.tensor(True))
    assert restored.scale == 2 * before


@pytest.mark.parametrize(
    ("convolution", "side", "exact"),
    [
        (nn.Conv3d(16, 16, 3, padding=1), 2, True),
        (nn.Conv3d(16, 16, 5, stride=2, padding=2), 4, True),
        (nn.ConvTranspose3d(16, 16, 5, stride=2, padding=2, output_padding=1), 2, True),
        (nn.Conv3d(16, 16, 3, padding=1), 8, False),
    ],
)
def test_kernels_larger_than_the_map_get_their_whole_gradient(
    convolution: nn.Module, side: int, exact: bool
) -> None:
    # In bf16 a part of it was what lay in the memory before, so only its precision can be tested.
    def gradient(network: nn.Module, x_BCDHW: torch.Tensor) -> torch.Tensor:
        convolution.zero_grad()
        network(x_BCDHW).float().square().sum().backward()
        found = convolution.weight.grad
        assert isinstance(found, torch.Tensor)
        return found.clone()

    x_BCDHW = torch.randn(1, 16, side, side, side)
    expected = gradient(convolution, x_BCDHW)
    spare_small_maps(convolution)
    found = gradient(Autocast(convolution, "bf16"), x_BCDHW)
    assert torch.equal(found, expected) == exact


@pytest.mark.parametrize(("tf32", "matmul"), [(True, "high"), (False, "highest")])
def test_the_arithmetic_of_a_gpu_follows_from_the_settings(
    monkeypatch: pytest.MonkeyPatch, tf32: bool, matmul: str
) -> None:
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    try:
        set_gpu_arithmetic(TrainConfig(tf32=tf32))
        assert torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.allow_tf32 == tf32
        assert torch.get_float32_matmul_precision() == matmul
    finally:
        torch.set_float32_matmul_precision(before)
