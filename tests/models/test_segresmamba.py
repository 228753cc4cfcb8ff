from __future__ import annotations

import pytest
import torch

from segresmamba.models import SegResMamba, build

TINY = {"dims": (8, 8, 16, 16), "d_state": 4}


def tiny(**arguments: object) -> SegResMamba:
    torch.manual_seed(0)
    return SegResMamba(in_channels=2, out_channels=3, **{**TINY, **arguments})


@pytest.mark.parametrize("size", [(64, 64, 64), (32, 32, 32), (33, 40, 64), (20, 17, 95)])
def test_logits_have_the_input_size_whatever_it_is(size: tuple[int, int, int]) -> None:
    assert tiny()(torch.randn(1, 2, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"deep_supervision": True},
        {"inner_tom": False},
        {"outer_tom": False},
        {"inner_tom": False, "outer_tom": False},
        {"tom_residual": False},
        {"num_slices": 2},
    ],
)
def test_every_parameter_receives_a_gradient(arguments: dict[str, object]) -> None:
    network = tiny(**arguments)
    outputs = network(torch.randn(2, 2, 64, 64, 64))
    outputs = outputs if isinstance(outputs, list) else [outputs]
    sum(output.square().mean() for output in outputs).backward()
    dead = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert dead == []


def test_paper_width_has_the_parameter_count_of_figure_1() -> None:
    network = SegResMamba(in_channels=4, out_channels=3)
    assert sum(parameter.numel() for parameter in network.parameters()) == 68_301_891


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
        ({"spatial_dims": 2}, "spatial_dims must be 3"),
        ({"in_channels": 0}, "at least 1"),
        ({"out_channels": 0}, "at least 1"),
        ({"dims": (12, 24)}, "divisible by 8"),
        ({"dims": (8,)}, "two stages"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegResMamba(**{"in_channels": 1, "out_channels": 2, **TINY, **arguments})


def test_an_unknown_network_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="segresmamba, segresnet"):
        build("unet4d", in_channels=1, out_channels=2)


def test_segresnet_is_built_by_name() -> None:
    network = build("segresnet", in_channels=1, out_channels=3, init_filters=8)
    assert network(torch.randn(1, 1, 32, 32, 32)).shape == (1, 3, 32, 32, 32)
