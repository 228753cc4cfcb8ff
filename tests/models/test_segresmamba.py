from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segresmamba.config import load_config
from segresmamba.models import ArgumentError, SegResMamba, TriOrientedMamba, build
from segresmamba.models.segresmamba import ResBlock
from segresmamba.planner.footprint import SavedBytes

TINY: dict[str, Any] = {"dims": (8, 8, 16, 16), "d_state": 4}
FAMILY = (
    "segresmamba",
    "segresmamba_fine",
    "segresmamba_released",
    "segresmamba_paper",
    "segresmamba_nomamba",
)


def tiny(name: str = "segresmamba", **arguments: Any) -> SegResMamba:
    torch.manual_seed(0)
    network = build(name, in_channels=2, out_channels=3, **{**TINY, **arguments})
    assert isinstance(network, SegResMamba)
    return network


def levels_of(network: nn.Module, x_BCDHW: Tensor) -> list[Tensor]:
    outputs = network(x_BCDHW)
    return outputs if isinstance(outputs, list) else [outputs]


def loss_and_gradients(network: nn.Module, x_BCDHW: Tensor) -> tuple[Tensor, list[Tensor]]:
    loss = torch.stack([level.square().mean() for level in levels_of(network, x_BCDHW)]).sum()
    return loss.detach(), list(torch.autograd.grad(loss, list(network.parameters())))


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("size", [(64, 64, 64), (33, 40, 64), (20, 17, 95), (5, 5, 5)])
def test_logits_have_the_input_size_whatever_it_is(name: str, size: tuple[int, int, int]) -> None:
    assert tiny(name).eval()(torch.randn(1, 2, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, {}) for name in FAMILY),
        ("segresmamba", {"deep_supervision": True}),
        ("segresmamba_fine", {"deep_supervision": True}),
        ("segresmamba_fine", {"inner_tom": False}),
        ("segresmamba", {"inner_tom": False}),
        ("segresmamba", {"outer_toms": 0}),
        ("segresmamba", {"outer_toms": 2, "stage_convs": 1}),
        ("segresmamba", {"tom_residual": False}),
        ("segresmamba", {"shared_directions": True}),
        ("segresmamba", {"num_slices": 2}),
        ("segresmamba", {"released_padding": True, "num_slices": 4}),
        ("segresmamba", {"d_state": 2, "d_conv": 3, "expand": 1}),
        ("segresmamba", {"dims": (8, 12)}),
    ],
)
def test_every_parameter_receives_a_gradient(name: str, arguments: dict[str, Any]) -> None:
    network = tiny(name, **arguments)
    for module in network.modules():  # what stands behind a projection of zeros gets none at first
        if isinstance(module, TriOrientedMamba):
            nn.init.normal_(module.out_proj_weight, std=0.1)
    _, gradients = loss_and_gradients(network, torch.randn(2, 2, 64, 64, 64))
    names = [name for name, _ in network.named_parameters()]
    assert [name for name, g in zip(names, gradients, strict=True) if not g.any()] == []


@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize(
    ("name", "in_channels", "out_channels", "count"),
    [
        ("segresmamba", 4, 3, 68_301_891),
        ("segresmamba_fine", 4, 3, 66_725_011),
        ("segresmamba_nomamba", 4, 3, 65_179_971),
        ("segresmamba_released", 1, 14, 70_426_430),
        ("segresmamba_paper", 1, 14, 80_397_710),
    ],
)
def test_the_parameter_counts_that_the_configuration_states(
    name: str, in_channels: int, out_channels: int, count: int
) -> None:
    assert parameters(build(name, in_channels=in_channels, out_channels=out_channels)) == count


@pytest.mark.usefixtures("uninitialised")
def test_the_paper_reconstruction_adds_up_to_the_printed_119_976_million() -> None:
    channels = {"in_channels": 1, "out_channels": 14}
    used = parameters(build("segresmamba_released", **channels))
    paper = build("segresmamba_paper", **channels)
    layers = [parameters(m) for m in paper.modules() if isinstance(m, TriOrientedMamba)]
    convolutions = sum(27 * width * width + width for width in (48, 96, 192, 384))
    assert (len(layers), sum(layers), convolutions) == (12, 3 * 1_560_960, 5_288_400)
    assert parameters(paper) == used + sum(layers) + convolutions
    assert parameters(paper) + 39_578_404 == 119_976_114  # the SegResNet encoder, not built


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("segresmamba", 8),
        ("segresmamba_fine", 4),
        ("segresmamba_paper", 12),
        ("segresmamba_nomamba", 0),
        ("segresmamba_released", 0),
    ],
)
def test_a_name_says_how_many_mamba_layers_there_are(name: str, count: int) -> None:
    assert sum(isinstance(m, TriOrientedMamba) for m in tiny(name).modules()) == count


def test_the_variants_differ_from_the_paper_network_in_nothing_but_their_mamba_layers() -> None:
    ours = tiny().state_dict()
    without = tiny("segresmamba_nomamba").state_dict()
    switched_off = tiny(inner_tom=False, outer_toms=0).state_dict()
    assert without.keys() == switched_off.keys()
    assert all(without[name].shape == ours[name].shape for name in without)
    assert {name.rpartition(".")[2] for name in ours.keys() - without.keys()} == {
        "A_log_KEN", "D_KE", "conv_bias_KE", "conv_weight_KEW", "dt_bias_KE", "dt_proj_weight_KER",
        "in_proj_weight", "norm_bias", "norm_weight", "out_proj_weight", "x_proj_weight_KPE",
    }  # fmt: skip


@pytest.mark.parametrize("name", FAMILY)
def test_a_preset_builds_what_its_name_builds(name: str) -> None:
    config = load_config([f"model={name}", "model.dims=[8,8]"])
    settings = config.model.model_dump(exclude={"name"})
    preset = build(config.model.name, in_channels=2, out_channels=3, **settings)
    assert str(preset) == str(tiny(name, dims=(8, 8), d_state=16))


@pytest.mark.parametrize("arguments", [{}, {"deep_supervision": True, "fine_channels": 8}])
def test_checkpointed_stages_keep_less_and_compute_the_same(arguments: dict[str, Any]) -> None:
    x_BCDHW = torch.randn(1, 2, 64, 64, 64)
    results, kept = [], []
    for stages in (0, 1, 4):
        network = tiny(checkpoint_stages=stages, **arguments)
        with SavedBytes([*network.parameters(), x_BCDHW]) as saved:
            levels_of(network, x_BCDHW)
        kept.append(saved.total)
        results.append(loss_and_gradients(network, x_BCDHW))
    assert kept[2] < kept[1] < kept[0] / 2
    for loss, gradients in results[1:]:
        assert torch.equal(loss, results[0][0])
        torch.testing.assert_close(gradients, results[0][1], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["segresmamba", "segresmamba_fine"])
def test_a_compiled_network_computes_the_same(name: str) -> None:
    network, x_BCDHW = tiny(name, dims=(8, 8)), torch.randn(1, 2, 32, 32, 32)
    expected = loss_and_gradients(network, x_BCDHW)
    # All of torch.compile but the generated code, which takes a compiler and a minute; the engine's
    # tests have that.
    network.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(loss_and_gradients(network, x_BCDHW), expected)


@pytest.mark.parametrize("name", ["segresmamba", "segresmamba_fine"])
def test_an_exported_network_keeps_the_scans_as_operators(name: str) -> None:
    network, x_BCDHW = tiny(name, dims=(8, 8)).eval(), torch.randn(1, 2, 32, 32, 32)
    program = torch.export.export(network, (x_BCDHW,))
    scans = [node for node in program.graph.nodes if "segresmamba.tri_scan" in str(node.target)]
    layers = [module for module in network.modules() if isinstance(module, TriOrientedMamba)]
    assert len(scans) == len(layers) > 0
    torch.testing.assert_close(program.module()(x_BCDHW), network(x_BCDHW))


def test_deep_supervision_adds_coarser_logits_in_training_only() -> None:
    network = tiny(deep_supervision=True)
    x_BCDHW = torch.randn(1, 2, 64, 64, 64)
    assert [tuple(level.shape[2:]) for level in network(x_BCDHW)] == [
        (64,) * 3,
        (16,) * 3,
        (8,) * 3,
    ]
    assert network.eval()(x_BCDHW).shape == (1, 3, 64, 64, 64)


def test_deep_supervision_covers_the_input_and_not_its_padding() -> None:
    levels = tiny(deep_supervision=True)(torch.randn(1, 2, 80, 64, 40))
    assert [tuple(level.shape[2:]) for level in levels] == [(80, 64, 40), (20, 16, 10), (10, 8, 5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 2}, "spatial_dims must be 3, got 2"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"out_channels": -1}, "out_channels must be at least 1, got -1"),
        ({"dims": (8, 12, 24)}, r"dims must be divisible by 8.* group norm\), got \(8, 12, 24\)"),
        ({"dims": (8, 0)}, "dims must be at least 1"),
        ({"dims": (8,)}, "dims must name two stages or more"),
        ({"d_state": 0}, "d_state must be at least 1"),
        ({"num_slices": 0}, "num_slices must be at least 1"),
        ({"zero_toms": True, "tom_residual": False}, "zero_toms needs tom_residual, got True"),
        ({"outer_toms": -1}, "outer_toms must be at least 0"),
        ({"checkpoint_stages": 5}, "checkpoint_stages must be at most the 4 stages, got 5"),
    ],
)
def test_impossible_arguments_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        SegResMamba(**{"in_channels": 1, "out_channels": 2, **TINY, **arguments})


@pytest.mark.parametrize(
    ("arguments", "size", "message"),
    [
        ({}, (32, 32, 32), "patch needs a side of more than 32 voxels.* got 32 x 32 x 32"),
        ({"num_slices": 3}, (64, 64, 64), r"num_slices must divide the 32768 tokens .*stage 0"),
        ({"num_slices": 8}, (64, 32, 32), "tokens .2 x 1 x 1. of the inside of stage 3 .* got 8"),
    ],
)
def test_a_patch_is_refused_before_anything_is_computed(
    arguments: dict[str, Any], size: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        tiny(patch=size, **arguments)


def test_slices_that_divide_no_map_are_refused_at_any_size() -> None:
    with pytest.raises(ArgumentError, match="num_slices must divide the 18 tokens"):
        tiny(num_slices=16)(torch.randn(1, 2, 96, 80, 64))


def test_norms_computed_again_keep_less_and_compute_the_same() -> None:
    x_BCDHW = torch.randn(1, 8, 8, 8, 8)
    plain, lean = ResBlock(8), ResBlock(8, recompute_norms=True)
    lean.load_state_dict(plain.state_dict())
    kept, gradients = [], []
    for block in (plain, lean):
        with SavedBytes([*block.parameters(), x_BCDHW]) as saved:
            block(x_BCDHW).sum().backward()
        kept.append(saved.total)
        gradients.append([parameter.grad for parameter in block.parameters()])
    torch.testing.assert_close(*gradients)
    assert kept[1] < kept[0]


def test_mamba_layers_that_begin_at_zero_change_nothing_at_first() -> None:
    x_BCDHW = torch.randn(1, 2, 64, 64, 64)
    network = tiny("segresmamba_fine", outer_toms=1).eval()
    without = tiny("segresmamba_fine", inner_tom=False).eval()
    without.load_state_dict(network.state_dict(), strict=False)
    torch.testing.assert_close(network(x_BCDHW), without(x_BCDHW))


def test_the_residual_block_is_that_of_segresnet() -> None:
    from monai.networks.blocks.segresnet_block import ResBlock as MonaiBlock

    ours, theirs = ResBlock(16), MonaiBlock(3, 16, norm=("group", {"num_groups": 8}))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x_BCDHW = torch.randn(2, 16, 4, 5, 6)
    assert torch.equal(ours(x_BCDHW), theirs(x_BCDHW))
