from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segresmamba import data
from segresmamba.config.schema import ValidationConfig
from segresmamba.inference.sliding_window import evaluating, predict_volume

CPU = torch.device("cpu")
BOUNDS_C4 = np.array([[-np.inf, np.inf, 50, 20], [2, 4, 3, 0.5]], np.float32)


class Probe(nn.Module):
    """Gives its input back, and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.windows: list[Tensor] = []

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        self.windows.append(x_BCDHW)
        return x_BCDHW * self.scale


def image(*shape_DHW: int, dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(0)
    return rng.uniform(0, 100, (2, *shape_DHW)).astype(dtype)


def predict(
    network: nn.Module, image_CDHW: Any, *, precision: str = "fp32", **validation: Any
) -> Tensor:
    return predict_volume(
        network,
        image_CDHW,
        BOUNDS_C4,
        patch=(8, 10, 6),
        validation=ValidationConfig(**validation),
        device=CPU,
        precision=precision,
    )


@pytest.mark.parametrize("shape", [(8, 10, 6), (19, 23, 17), (5, 23, 4), (3, 3, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
@pytest.mark.parametrize("validation", [{"overlap": 0.0}, {"overlap": 0.6, "window_batch": 3}])
def test_windows_are_stitched_to_the_network_s_output_for_the_normalised_volume(
    shape: tuple[int, int, int], dtype: Any, validation: dict[str, Any]
) -> None:
    raw = image(*shape, dtype=dtype)
    logits = predict(Probe(), raw, **validation)
    expected = data.normalise(torch.from_numpy(raw).float()[None], torch.tensor(BOUNDS_C4)[None])
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-4)


def test_every_window_has_the_patch_s_size_and_the_network_sees_at_most_window_batch() -> None:
    network = Probe()
    predict(network, image(19, 5, 17), window_batch=4)
    assert {window.shape[2:] for window in network.windows} == {(8, 10, 6)}
    assert max(len(window) for window in network.windows) == 4


def test_a_small_volume_is_extended_by_its_outermost_voxels() -> None:
    network = Probe()
    predict(network, image(3, 10, 6))
    (window,) = network.windows  # 2 voxels before, 3 after
    for depth, neighbour in enumerate([2, 2, 2, 3, 4, 4, 4, 4]):
        assert torch.equal(window[:, :, depth], window[:, :, neighbour])


def test_the_centre_of_a_window_outweighs_its_edge() -> None:
    class WindowNumber(Probe):
        def forward(self, x_BCDHW: Tensor) -> Tensor:
            self.windows.append(x_BCDHW)
            return torch.full_like(x_BCDHW, float(len(self.windows)))

    profile = predict(WindowNumber(), image(12, 10, 6), overlap=0.5)[0, :, 5, 3]
    assert profile[0] == 1
    assert profile[-1] == 2
    assert profile[4] < 1.5 < profile[7]  # both windows hold these


def test_the_network_runs_in_evaluation_mode_without_gradients_and_gets_its_mode_back() -> None:
    network = nn.Sequential(Probe(), nn.Dropout(0.9))
    network.train()
    logits = predict(network, image(8, 10, 6))
    assert not logits.requires_grad
    assert (logits != 0).all()
    assert network.training
    assert network[1].training


def test_the_mode_comes_back_after_an_error() -> None:
    network = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="in the middle"), evaluating(network):
        raise RuntimeError("in the middle")
    assert network.training


def test_half_precision_is_the_network_s_alone() -> None:
    network = nn.Sequential(nn.Conv3d(2, 3, 1), probe := Probe())
    logits = predict(network, image(8, 10, 6), precision="bf16")
    assert probe.windows[0].dtype == torch.bfloat16
    assert logits.dtype == torch.float32


def test_logits_too_large_for_the_device_are_stitched_on_the_cpu(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class FullOnce(Probe):
        def forward(self, x_BCDHW: Tensor) -> Tensor:
            if not self.windows:
                self.windows.append(x_BCDHW)
                raise torch.OutOfMemoryError
            return super().forward(x_BCDHW)

    with caplog.at_level(logging.WARNING):
        logits = predict(FullOnce(), image(8, 10, 6))
    torch.testing.assert_close(logits, predict(Probe(), image(8, 10, 6)))
    assert "stitching them on the CPU" in caplog.text


def test_a_network_too_large_for_the_device_is_an_error() -> None:
    class AlwaysFull(Probe):
        def forward(self, x_BCDHW: Tensor) -> Tensor:
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        predict(AlwaysFull(), image(8, 10, 6))
