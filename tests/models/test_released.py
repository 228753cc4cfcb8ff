"""The released code's weights in our network; fixtures/README.md says what is recorded."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor

from segresmamba.models import SegResMamba, build, load_released_state_dict
from tests.models import recorded

SHAPES = recorded.shapes("released_shapes.json")
UNUSED = ("mamba_layer", "convInit", "down_layers", "conv_final")


def is_unused(key: str) -> bool:
    return any(part in key for part in UNUSED)


def narrow(**arguments: object) -> SegResMamba:
    network = build(
        "segresmamba_released", in_channels=2, out_channels=3, dims=(8, 16, 24, 32), **arguments
    )
    assert isinstance(network, SegResMamba)
    return network


def narrow_state_dict() -> dict[str, Tensor]:
    """The state dict that the released code would have at widths 8, 16, 24, 32."""
    widths = {48: 8, 96: 16, 192: 24, 384: 32, 4: 2}
    shapes = {
        key: tuple(widths.get(n, n) if axis < 2 else n for axis, n in enumerate(shape))
        for key, shape in SHAPES.items()
    }
    # Twice a width is the hidden width of a skip's MLP; elsewhere it is the next stage's.
    for i, width in enumerate((8, 16, 24, 32)):
        shapes[f"vit.mlps.{i}.fc1.weight"] = (2 * width, width, 1, 1, 1)
        shapes[f"vit.mlps.{i}.fc1.bias"] = (2 * width,)
        shapes[f"vit.mlps.{i}.fc2.weight"] = (width, 2 * width, 1, 1, 1)
    return {
        key: torch.empty(0) if is_unused(key) else recorded.weight(key, shape)
        for key, shape in shapes.items()
    }


def test_outputs_are_those_of_the_released_code(caplog: pytest.LogCaptureFixture) -> None:
    network = build("segresmamba_released", in_channels=4, out_channels=3).eval()
    state_dict = {
        key: torch.empty(0) if is_unused(key) else recorded.weight(key, tuple(shape))
        for key, shape in SHAPES.items()
    }
    with caplog.at_level(logging.INFO):
        unused = load_released_state_dict(network, state_dict)
    assert set(unused) == {key for key in SHAPES if is_unused(key)}
    assert "never uses the other 162" in caplog.text
    assert recorded.relative_error(network, "released_logits.npz", (48, 48, 64)) < 1e-5
    network.double()
    assert recorded.relative_error(network, "released_logits.npz", (48, 32, 16)) < 1e-10


def test_every_tensor_finds_its_place() -> None:
    state_dict = narrow_state_dict()
    network = narrow()
    unused = load_released_state_dict(network, state_dict)
    loaded = sum(p.numel() for p in network.parameters())
    assert loaded == sum(v.numel() for key, v in state_dict.items() if key not in unused)
    assert torch.equal(network.blocks[2].branch[10].weight, state_dict["vit.gscs.2.proj5.weight"])
    assert torch.equal(network.downs[3][1].bias, state_dict["vit.downsample_layers.3.1.bias"])
    assert torch.equal(
        network.decoders[0].norm2.weight, state_dict["segresnet.up_layers.0.0.norm2.weight"]
    )


@pytest.mark.usefixtures("uninitialised")
def test_parameters_and_what_is_not_built_add_up_to_the_released_111_61_million() -> None:
    built = build("segresmamba_released", in_channels=4, out_channels=3)
    used = sum(p.numel() for p in built.parameters())
    dead = sum(math.prod(shape) for key, shape in SHAPES.items() if is_unused(key))
    assert (used, dead, used + dead) == (70_471_587, 41_139_364, 111_610_951)


def wrong(change: str) -> dict[str, Tensor]:
    state_dict = narrow_state_dict()
    match change:
        case "shape":
            state_dict["out.weight"] = torch.zeros(8, 5, 2, 2, 2)
        case "missing":
            del state_dict["vit.mlps.1.fc2.bias"]
        case "extra":
            state_dict["vit.gscs.0.gate.weight"] = torch.zeros(8)
        case "ours":
            state_dict = dict(narrow().state_dict())
        case "wrapped":
            state_dict = {"state_dict": state_dict}  # type: ignore[dict-item]
    return state_dict


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("shape", r"out\.weight is \(8, 5, 2, 2, 2\) instead of \(8, 3, 2, 2, 2\)$"),
        ("missing", r"vit\.mlps\.1\.fc2\.bias \(16,\) is missing$"),
        ("extra", r"vit\.gscs\.0\.gate\.weight \(8,\) has no place$"),
        (
            "ours",
            r"downsample_layers\.0\.0\.weight \(8, 2, 7, 7, 7\) is missing; .*; downs\.0\.weight ",
        ),
        ("wrapped", r"downsample_layers\.0\.0\.weight .*; state_dict dict has no place$"),
    ],
)
def test_the_state_dict_of_another_network_is_refused_and_changes_nothing(
    change: str, message: str
) -> None:
    network = narrow()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_released_state_dict(network, wrong(change))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_a_network_with_mamba_layers_does_not_take_weights_that_have_none() -> None:
    network = build("segresmamba_paper", in_channels=2, out_channels=3, dims=(8, 16, 24, 32))
    with pytest.raises(ValueError, match=r"blocks\.0\.branch\.6\.norm_weight \(8,\) is missing"):
        load_released_state_dict(network, narrow_state_dict())
