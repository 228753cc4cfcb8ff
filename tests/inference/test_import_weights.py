"""Weights of others, by the names of their libraries, become model folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from segresmamba.config import Config, load_config
from segresmamba.errors import CheckpointError, ConfigError
from segresmamba.inference.import_weights import import_weights
from segresmamba.inference.trained import open_models
from segresmamba.models.released import _NAMES
from segresmamba.models.state_dicts import renamed
from segresmamba.task.task import build_network
from segresmamba.task.weights import load_network
from tests.cli.test_main import run

UNET = ("model=unet", "model.channels=[4,8]", "model.num_res_units=0")
RELEASED = ("model=segresmamba_released", "model.dims=[8,8]")


def settings(store: Path, *overrides: str) -> list[str]:
    return ["data=custom", f"data.store={store}", "data.patch=[16,16,16]", *overrides]


def state_of(config: Config) -> dict[str, Tensor]:
    """Weights that a new network of the configuration does not have."""
    network = build_network(config.model_copy(update={"seed": 7}), 2, 3)
    return network.state_dict()


def loaded(out: Path) -> dict[str, Tensor]:
    (model,) = open_models(out)
    return load_network(model.weights, model.config).network.state_dict()


def test_a_file_with_a_librarys_own_names(tiny_store: Path, tmp_path: Path) -> None:
    config = load_config(settings(tiny_store, *UNET))
    state = state_of(config)
    bare = {name.removeprefix("network."): value for name, value in state.items()}
    save_file(bare, tmp_path / "theirs.safetensors")
    out = import_weights(tmp_path / "theirs.safetensors", tmp_path / "out", config, licence="MIT")
    torch.testing.assert_close(loaded(out), state)
    (model,) = open_models(out)
    assert model.facts.channel_names == ["channel0", "channel1"]
    assert model.facts.labels == {"background": 0, "ball": 1, "box": 2}
    assert "MIT" in (out / "README.md").read_text()


def test_a_monai_bundle(tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = settings(tiny_store, *UNET)
    state = state_of(load_config(words))
    (tmp_path / "bundle" / "models").mkdir(parents=True)
    torch.save(state, tmp_path / "bundle" / "models" / "model.pt")
    out = tmp_path / "out"
    assert run(monkeypatch, "import", tmp_path / "bundle", *words, "--out", out) == 0
    torch.testing.assert_close(loaded(out), state)


def test_the_released_segresmamba(tiny_store: Path, tmp_path: Path) -> None:
    config = load_config(settings(tiny_store, *RELEASED))
    state = state_of(config)
    theirs = {renamed(name, _NAMES): value for name, value in state.items()}
    unused = {"segresnet.conv_final.2.conv.weight": torch.zeros(1)}
    torch.save({"state_dict": theirs | unused}, tmp_path / "released.pt")
    out = import_weights(tmp_path / "released.pt", tmp_path / "out", config)
    torch.testing.assert_close(loaded(out), state)


def test_weights_that_do_not_fit_are_refused_with_the_first_difference(
    tiny_store: Path, tmp_path: Path
) -> None:
    config = load_config(settings(tiny_store, *UNET))
    state, file = state_of(config), tmp_path / "theirs.safetensors"
    name = next(iter(state))
    save_file({key: value for key, value in state.items() if key != name}, file)
    with pytest.raises(CheckpointError, match=f"not the weights of unet.*{name}.*is missing"):
        import_weights(file, tmp_path / "out", config)
    file.write_bytes(b"no weights")
    with pytest.raises(ConfigError, match=f"cannot be read.*{file}"):
        import_weights(file, tmp_path / "out", config)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".part-*"))


def test_a_file_without_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights.pt").touch()
    assert run(monkeypatch, "import", tmp_path / "weights.pt", "--out", tmp_path / "out") == 2
    assert "for a file of weights give settings too" in capsys.readouterr().err
