"""What is refused before a run starts, and the switches that must not change a result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from segresmamba.config import load_config
from segresmamba.engine.distributed import join
from segresmamba.engine.trainer import train
from segresmamba.engine.zero import ZeroEngine
from segresmamba.errors import ConfigError
from segresmamba.models import SegResMamba
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import build_network
from tests.engine.tiny import tiny_config


def losses(tmp_path: Path, *words: str, thin: bool = False) -> list[float]:
    """Losses of three steps on the same noise, by the engine."""
    config = tiny_config(tmp_path, tmp_path, *words)
    ranks = Ranks.from_environment()
    join(ranks, threads=1)
    network = build_network(config, 1, 3)
    if thin:
        thin_out(network)
    engine = ZeroEngine(network, config, ranks)
    torch.manual_seed(0)
    found = []
    for _ in range(3):
        logits = engine.forward(torch.randn(2, 1, 32, 32, 32))
        assert isinstance(logits, torch.Tensor)
        loss = (logits - torch.randn(logits.shape)).square().mean()
        engine.backward(loss, 1e-2)
        found.append(float(loss.detach()))
    return found


def thin_out(network: nn.Module) -> None:
    """Take out layers of which the network has more: each makes Inductor compile more kernels."""
    assert isinstance(network, SegResMamba)
    fine, coarse = network.blocks
    fine.branch = nn.Identity()
    # What stays: the Mamba layer between convolutions, and a residual block with its norms.
    coarse.branch = nn.Sequential(coarse.branch[0], coarse.branch[6], coarse.branch[10])
    network.skips = nn.ModuleList(nn.Identity() for _ in network.skips)
    network.downs[1] = network.downs[1][3]


@pytest.mark.parametrize(
    ("words", "where", "got", "remedy"),
    [
        (["model.dims=[8,8,16,16]"], "data.patch", "32 x 32 x 32", "a side of more than 32"),
        (["model=unet", "data.patch=[16,16,16]"], "data.patch", "16 x 16 x 16", "more than 16"),
        (["model.num_slices=5"], "model.num_slices", "5", "must divide the 4096 tokens"),
        (["model.dims=[12,8]"], "model.dims", "(12, 8)", "divisible by 8"),
        (["model.checkpoint_stages=3"], "model.checkpoint_stages", "3", "at most the 2 stages"),
        (["model=segresnet", "model.init_filters=4"], "model.init_filters", "4", "divisible by 8"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_key_before_a_folder_is_written(
    tiny_store: Path, tmp_path: Path, words: list[str], where: str, got: str, remedy: str
) -> None:
    own = [word for word in words if word.startswith("model=")]
    settings = [
        "data=custom", f"data.store={tiny_store}", "data.patch=[32,32,32]", "tracking=none",
        f"run.root={tmp_path / 'runs'}", *(own or ["model.dims=[8,8]"]), *words,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="cannot be built or trained like this") as caught:
        train(load_config(settings))
    assert (caught.value.where, caught.value.got) == (where, got)
    assert remedy in caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_building_a_network_leaves_the_random_state_of_gpus_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch would read the state of every GPU, warn that there are several, and seed them all."""
    config = tiny_config(tmp_path, tmp_path)

    def touched(*_: object) -> None:
        raise AssertionError("a GPU was touched")

    monkeypatch.setattr(torch.random, "_fork_rng_warned_already", False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, touched)
    before = torch.random.get_rng_state()
    network = build_network(config, 1, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    again = build_network(config, 1, 2)
    for weight, same in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, same)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_channels_last_computes_the_same_at_every_stage(tmp_path: Path, stage: int) -> None:
    words = [f"train.zero_stage={stage}"]
    expected = losses(tmp_path, *words)
    assert losses(tmp_path, *words, "train.channels_last=true") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "words",
    [
        ["model=segresnet", "model.init_filters=8"],
        ["model=dynunet", "model.filters=[4,8,8,8]"],
        ["model=segmamba", "model.dims=[8,8,8,8]", "model.hidden_size=16", "model.d_state=4"],
    ],
)
def test_channels_last_computes_the_same_in_other_networks(words: list[str]) -> None:
    plain, last = (
        build_network(
            load_config(["data=custom", "data.store=none", "data.patch=[32,32,32]", *words, *more]),
            2,
            3,
        )
        for more in ([], ["train.channels_last=true"])
    )
    x_BCDHW = torch.randn(1, 2, 32, 32, 32)
    torch.testing.assert_close(last(x_BCDHW), plain(x_BCDHW), rtol=1e-4, atol=1e-5)


def test_channels_last_reaches_the_convolutions(tmp_path: Path) -> None:
    network = build_network(tiny_config(tmp_path, tmp_path, "train.channels_last=true"), 2, 3)
    seen: list[bool] = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_pre_hook(
                lambda _, x: seen.append(x[0].is_contiguous(memory_format=torch.channels_last_3d))
            )
    with torch.inference_mode():
        network.eval()(torch.randn(1, 2, 32, 32, 32))
    assert len(seen) > 10
    assert all(seen)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
def test_a_compiled_network_trains_the_same(tmp_path: Path) -> None:
    words = ["model.outer_toms=0"]
    expected = losses(tmp_path, *words, thin=True)
    compiled = losses(tmp_path, *words, "train.compile=true", thin=True)
    assert compiled == pytest.approx(expected, rel=1e-4)


def test_compiling_without_a_compiler_is_refused_before_a_folder_is_written(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="install g\\+\\+") as caught:
        train(tiny_config(tiny_store, tmp_path / "runs", "train.compile=true"))
    assert caught.value.where == "train.compile"
    assert caught.value.got == "true, without no-such-compiler"
    assert not list(tmp_path.iterdir())
