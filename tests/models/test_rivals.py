"""Every network but our own family, by name: sizes, gradients, deep supervision, refusals."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segresmamba.config.networks import NETWORKS
from segresmamba.errors import BackendMissingError
from segresmamba.models import ArgumentError, build

PATCH = (48, 32, 40)
# The narrowest that is still the network; with the parameters at the full width for 4 -> 3.
SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "segmamba": ({"dims": (8, 8, 16, 16), "hidden_size": 16, "d_state": 4}, 67_413_267),
    "segresnet": ({"init_filters": 8}, 18_798_627),
    "swinunetr": ({"feature_size": 12}, 62_191_941),
    "unetr": (
        {"feature_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 4},
        102_449_715,
    ),
    "unet": ({"channels": (4, 8, 8)}, 19_223_978),
    "dynunet": ({"filters": (4, 8, 8, 8)}, 31_192_035),
    "mednext": ({}, 5_551_043),
    "resenc_unet": ({"features": (4, 8, 8), "blocks": (1, 2, 1)}, 102_350_851),
    "umamba_bot": ({"features": (4, 8, 8), "blocks": (1, 1, 1), "d_state": 4}, 28_193_603),
    "nnunet": (
        {
            "features": (4, 8, 8),
            "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
            "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
            "blocks": (2, 2, 1),
            "decoder_blocks": (1, 2),
        },
        31_196_675,
    ),
}
PAPER_MILLIONS = {"segmamba": 67.36, "swinunetr": 62.19, "unetr": 93.01, "dynunet": 31.19}
DEEPLY_SUPERVISED = {
    "dynunet": [PATCH, (24, 16, 20)],
    "mednext": [PATCH, (24, 16, 20), (12, 8, 10), (6, 4, 5), (3, 2, 3)],
    "resenc_unet": [PATCH, (24, 16, 20)],
    "umamba_bot": [PATCH, (24, 16, 20)],
    "nnunet": [PATCH, (48, 16, 20)],
}


def small(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    settings = SMALL[name][0] | arguments
    return build(name, in_channels=2, out_channels=3, patch=PATCH, **settings)


def levels_of(network: nn.Module, x_BCDHW: Tensor) -> list[Tensor]:
    outputs = network(x_BCDHW)
    return outputs if isinstance(outputs, list) else [outputs]


def loss_and_gradients(network: nn.Module, x_BCDHW: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    loss = torch.stack([level.square().mean() for level in levels_of(network, x_BCDHW)]).sum()
    gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    return loss.detach(), list(gradients)


def test_these_are_all_the_networks_besides_the_family() -> None:
    assert set(SMALL) == {name for name in NETWORKS if not name.startswith("segresmamba")}


@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize("name", SMALL)
def test_parameters_at_the_default_width(name: str) -> None:
    network = build(name, in_channels=4, out_channels=3)
    assert sum(parameter.numel() for parameter in network.parameters()) == SMALL[name][1]


@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("segmamba", 67_360_382),
        ("swinunetr", 62_187_296),
        ("unetr", 93_011_374),
        ("dynunet", 31_189_806),
    ],
)
def test_at_the_channels_of_btcv_the_counts_are_those_that_the_paper_prints(
    name: str, count: int
) -> None:
    network = build(name, in_channels=1, out_channels=14)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert PAPER_MILLIONS[name] == round(count / 1e6, 2)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [PATCH, (17, 9, 33), (5, 5, 5)])
def test_logits_have_the_input_size_whatever_it_is(name: str, size: tuple[int, int, int]) -> None:
    with torch.inference_mode():
        assert small(name).eval()(torch.randn(1, 2, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, {}) for name in SMALL),
        *((name, {"deep_supervision": True}) for name in DEEPLY_SUPERVISED),
        ("swinunetr", {"use_checkpoint": True}),
        ("dynunet", {"res_block": True}),
        ("nnunet", {"encoder": "residual"}),
        ("unet", {"num_res_units": 0}),
    ],
)
def test_every_parameter_receives_a_gradient(name: str, arguments: dict[str, Any]) -> None:
    network = small(name, **arguments)
    with torch.no_grad():
        for parameter in network.parameters():  # nnU-Net starts with branches switched off
            parameter.add_(0.05 * torch.randn_like(parameter))
    _, gradients = loss_and_gradients(network, torch.randn(1, 2, *PATCH))
    named = zip(network.named_parameters(), gradients, strict=True)
    assert [key for (key, _), g in named if g is None or not g.any()] == []


@pytest.mark.parametrize("name", DEEPLY_SUPERVISED)
def test_deep_supervision_is_a_list_in_training_and_covers_the_input(name: str) -> None:
    network, x_BCDHW = small(name, deep_supervision=True), torch.randn(1, 2, *PATCH)
    assert [tuple(level.shape[2:]) for level in network(x_BCDHW)] == DEEPLY_SUPERVISED[name]
    assert network.eval()(x_BCDHW).shape == (1, 3, *PATCH)


def test_swinunetr_computes_the_same_with_checkpointing() -> None:
    x_BCDHW = torch.randn(1, 2, *PATCH)
    loss, gradients = loss_and_gradients(small("swinunetr"), x_BCDHW)
    again, recomputed = loss_and_gradients(small("swinunetr", use_checkpoint=True), x_BCDHW)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(recomputed, gradients)


@pytest.mark.parametrize("name", SMALL)
def test_a_patch_of_one_voxel_at_the_deepest_level_is_refused(name: str) -> None:
    patch = (2, 4, 4)  # the deepest voxel of the small nnunet; others have larger ones
    with pytest.raises(ArgumentError, match=r"patch needs a side of more than .* got 2 x 4 x 4"):
        build(name, in_channels=2, out_channels=3, patch=patch, **SMALL[name][0])


def test_unetr_is_made_for_the_patch_and_refuses_more() -> None:
    network = small("unetr")
    with pytest.raises(ArgumentError, match="cannot be larger than the 48 x 32 x 48"):
        network(torch.randn(1, 2, 49, 32, 40))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("segresnet", {"init_filters": 12}, "init_filters must be divisible by 8"),
        ("segresnet", {"blocks_up": (1, 1)}, "blocks_up must be 3 numbers"),
        ("swinunetr", {"feature_size": 40}, "feature_size must be divisible by 12"),
        ("unetr", {"hidden_size": 100}, "hidden_size must be divisible by 12"),
        ("unet", {"channels": (8,)}, "channels must name 2 levels or more"),
        ("unet", {"channels": (8, 0)}, "channels must be at least 1"),
        ("dynunet", {"filters": (8, 8)}, "filters must name 3 levels or more"),
        (
            "dynunet",
            {"filters": (8, 8, 8), "deep_supervision": True},
            "filters must name 4 levels or more",
        ),
        ("umamba_bot", {"blocks": (1, 1)}, "blocks must be one number for each of the 6"),
        ("resenc_unet", {"blocks": (1, 1)}, "blocks must be one number for each of the 6"),
        ("nnunet", {"decoder_blocks": (1, 1)}, "for each of 5 levels of the decoder"),
        ("segmamba", {"dims": (8, 8)}, "dims must name 4 stages"),
        ("segmamba", {"depths": (1, 1, 1, 0)}, "depths must be at least 1"),
        ("segmamba", {"num_slices": (64, 32, 16, 8), "patch": (48, 48, 48)}, "num_slices .*216"),
        *((name, {"in_channels": 0}, "in_channels must be at least 1") for name in SMALL),
        *((name, {"out_channels": 0}, "out_channels must be at least 1") for name in SMALL),
    ],
)
def test_impossible_arguments_are_refused_by_name(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        build(name, **{"in_channels": 1, "out_channels": 2, **arguments})


def test_an_unknown_network_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=", ".join(sorted(NETWORKS))):
        build("unet4d", in_channels=1, out_channels=2)


def test_a_missing_library_is_named_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures.architectures.unet", None)
    with pytest.raises(BackendMissingError, match=r"pip install 'segresmamba\[rivals\]'"):
        small("resenc_unet")
