"""The official SegMamba's weights in ours; fixtures/README.md says what is recorded."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor

from segresmamba.models import SegMamba, load_official_segmamba_state_dict
from tests.models import recorded

SHAPES = recorded.shapes("segmamba_shapes.json")
LOGITS = "segmamba_logits.npz"
# As the official code has them, whatever the size.
SLICES = (64, 32, 16, 8)


def official_state_dict() -> dict[str, Tensor]:
    return {key: recorded.weight(key, tuple(shape)) for key, shape in SHAPES.items()}


def narrow() -> SegMamba:
    return SegMamba(in_channels=2, out_channels=3, dims=(8, 8, 16, 16), hidden_size=16, d_state=4)


def test_outputs_are_those_of_the_official_code(caplog: pytest.LogCaptureFixture) -> None:
    network = SegMamba(in_channels=4, out_channels=3, num_slices=SLICES).eval()
    state_dict = official_state_dict()
    with caplog.at_level(logging.INFO):
        cancelled = load_official_segmamba_state_dict(network, state_dict)
    assert set(cancelled) == {key for key in SHAPES if ".gscs." in key and key.endswith("bias")}
    assert f"cancel the other {len(cancelled)}" in caplog.text
    assert recorded.relative_error(network, LOGITS, (64, 32, 48)) < 1e-4


@pytest.mark.usefixtures("uninitialised")
def test_parameters_and_cancelled_biases_add_up_to_the_official_67_42_million() -> None:
    built = SegMamba(in_channels=4, out_channels=3)
    used = sum(p.numel() for p in built.parameters())
    cancelled = 4 * sum((48, 96, 192, 384))
    total = sum(math.prod(shape) for shape in SHAPES.values())
    assert (used, cancelled, used + cancelled) == (67_413_267, 2_880, total)


def test_the_depth_of_the_map_is_the_official_number_of_slices_at_a_depth_of_128() -> None:
    torch.manual_seed(0)
    network = narrow().eval()
    x_BCDHW = torch.randn(1, 2, 128, 16, 16)
    with torch.inference_mode():
        by_depth = network(x_BCDHW)
        network.num_slices = SLICES
        for block, slices in zip(network.blocks, SLICES, strict=True):
            for layer in list(block)[1:]:
                layer.num_slices = slices
        torch.testing.assert_close(network(x_BCDHW), by_depth)


def wrong(change: str) -> dict[str, Tensor]:
    state_dict = {key: torch.empty(shape) for key, shape in SHAPES.items()}
    match change:
        case "shape":
            state_dict["out.conv.conv.bias"] = torch.zeros(5)
        case "missing":
            del state_dict["vit.stages.1.0.mamba.dt_proj_s.bias"]
        case "extra":
            state_dict["vit.norm.weight"] = torch.zeros(8)
        case "ours":
            state_dict = dict(narrow().state_dict())
    return state_dict


@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("shape", r"out\.conv\.conv\.bias is \(5,\) instead of \(3,\)$"),
        ("missing", r"vit\.stages\.1\.0\.mamba\.dt_proj_s\.bias \(192,\) is missing$"),
        ("extra", r"vit\.norm\.weight \(8,\) has no place$"),
        ("ours", r"vit\.downsample_layers\.0\.0\.weight \(48, 4, 7, 7, 7\) is missing; .* more"),
    ],
)
def test_the_state_dict_of_another_network_is_refused(change: str, message: str) -> None:
    network = SegMamba(in_channels=4, out_channels=3)
    with pytest.raises(ValueError, match=message):
        load_official_segmamba_state_dict(network, wrong(change))
