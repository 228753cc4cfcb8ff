"""Networks from elsewhere: built, padded, and refused with a remedy."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segresmamba.config.plugins import load_target
from segresmamba.errors import ConfigError
from segresmamba.models import build

NAME = "tests.models.test_plugins"


class Halving(nn.Module):
    """Needs sides that are multiples of 4."""

    def __init__(self, in_channels: int, out_channels: int, width: int = 4) -> None:
        super().__init__()
        self.down = nn.Conv3d(in_channels, width, 4, stride=4)
        self.up = nn.ConvTranspose3d(width, out_channels, 4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        up: Tensor = self.up(self.down(x))
        return up


class Supervised(Halving):
    def forward(self, x: Tensor) -> Any:
        full = super().forward(x)
        return [full, full[:, :, ::4, ::4, ::4]]


class Valid(Halving):
    """Loses the border, as convolutions without padding do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., 1:-1]


class Skipping(Halving):
    """Adds its input's half to what it upsampled, so an odd side ends in an error of torch."""

    def forward(self, x: Tensor) -> Tensor:
        half = x[:, :1, ::2, ::2, ::2]
        return super().forward(x) + half.repeat_interleave(2, -1)


class Mapping(Halving):
    def forward(self, x: Tensor) -> Any:
        return {"out": super().forward(x)}


class Detached(Halving):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Script:
    """What a script does when it is imported or called."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        sys.exit(3)


def no_network(in_channels: int, out_channels: int) -> str:
    return "x"


def other_arguments(channels: int) -> None:
    """Takes neither in_channels nor out_channels."""


CONSTANT = 3


def made(name: str, stride: int = 4, **kwargs: Any) -> nn.Module:
    return build("plugin", in_channels=2, out_channels=3, patch=(8, 8, 8),
                 target=f"{NAME}:{name}", kwargs=kwargs, stride=stride)  # fmt: skip


@pytest.mark.parametrize("size", [(8, 8, 8), (5, 9, 16)])
def test_any_size_is_taken_and_given_back(size: tuple[int, int, int]) -> None:
    network = made("Halving", width=2)
    assert network(torch.zeros(1, 2, *size)).shape == (1, 3, *size)
    assert len(network.state_dict()) == 4


def test_deep_supervision_is_for_training_only() -> None:
    network = made("Supervised")
    x_BCDHW = torch.zeros(1, 2, 6, 8, 8)
    assert [tuple(one.shape[2:]) for one in network.train()(x_BCDHW)] == [(6, 8, 8), (2, 2, 2)]
    assert network.eval()(x_BCDHW).shape == (1, 3, 6, 8, 8)


def test_a_network_of_monai_is_a_target() -> None:
    network = build("plugin", in_channels=1, out_channels=2, kwargs={"init_filters": 8}, stride=8,
                    target="monai.networks.nets.segresnet:SegResNet")  # fmt: skip
    assert network(torch.zeros(1, 1, 16, 16, 12)).shape == (1, 2, 16, 16, 12)


@pytest.mark.parametrize(
    ("name", "kwargs", "text"),
    [
        ("NoSuch", {}, "has no attribute 'NoSuch'"),
        ("CONSTANT", {}, "is int"),
        ("other_arguments", {}, "missing a required argument: 'channels'"),
        ("Halving", {"depth": 3}, "got an unexpected keyword argument 'depth'"),
        ("no_network", {}, "made str"),
    ],
)
def test_what_is_no_network_is_refused(name: str, kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(name, **kwargs)
    assert f"{NAME}:{name}" in caught.value.got
    assert text in caught.value.got
    assert caught.value.where.startswith("model.target")


@pytest.mark.parametrize(("name", "stride"), [("Valid", 4), ("Halving", 1)])
def test_logits_of_another_size_are_refused(name: str, stride: int) -> None:
    network = made(name, stride)
    with pytest.raises(ConfigError, match=r"model\.stride"):
        network(torch.zeros(1, 2, 8, 8, 9))


def test_what_is_no_logits_is_refused_by_its_type() -> None:
    with pytest.raises(ConfigError, match="dict for an input"):
        made("Mapping")(torch.zeros(1, 2, 8, 8, 8))


def test_logits_without_a_gradient_are_refused_in_training() -> None:
    network = made("Detached")
    with pytest.raises(ConfigError, match="no weight of the network can learn"):
        network(torch.zeros(1, 2, 8, 8, 8))
    assert network.eval()(torch.zeros(1, 2, 8, 8, 8)).shape == (1, 3, 8, 8, 8)


def test_a_target_that_ends_the_program_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"ends the program.*sys.exit\(3\)"):
        made("Script")
    (tmp_path / "a_script_of_mine.py").write_text("import sys; sys.exit()")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="ends the program"):
        load_target("a_script_of_mine:Net", "model.target")


def test_a_size_that_the_network_fails_at_is_refused_with_its_stride() -> None:
    network = made("Skipping", stride=3)
    with pytest.raises(ConfigError, match=r"model\.stride") as caught:
        network(torch.zeros(1, 2, 8, 8, 9))
    assert "must match" in caught.value.got
    assert "(9, 9, 9), the multiples of model.stride=3" in caught.value.got


def test_other_failures_of_a_network_are_not_taken_for_its_stride() -> None:
    with pytest.raises(RuntimeError, match="expected input"):
        made("Halving")(torch.zeros(1, 5, 8, 8, 8))


def test_a_patch_of_one_voxel_at_the_deepest_level_is_refused_with_the_stride() -> None:
    with pytest.raises(ValueError, match="patch needs a side of more than 8") as caught:
        made("Halving", stride=8)
    assert "model.stride=8" in str(caught.value)
    assert f"{NAME}:Halving" in str(caught.value)


def test_the_network_is_compiled_in_one_piece() -> None:
    network = torch.compile(made("Halving"), backend="eager", fullgraph=True)
    assert network(torch.zeros(1, 2, 8, 8, 9)).shape == (1, 3, 8, 8, 9)


def test_a_module_that_fails_while_it_is_imported_is_named() -> None:
    with pytest.raises(ConfigError, match="cannot be imported") as caught:
        build("plugin", in_channels=1, out_channels=2, kwargs={}, stride=1, target="nosuch:Net")
    assert "ModuleNotFoundError" in caught.value.got
