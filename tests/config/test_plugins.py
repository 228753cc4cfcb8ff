"""Networks of other packages: named by target or entry point, checked, never imported here."""

import sys
from pathlib import Path

import pytest

from segresmamba.config import compose, config_digest, load_config, plugins, read_config, run_folder
from segresmamba.errors import ConfigError
from segresmamba.storage.run_folder import write_config

TARGET = "monai.networks.nets.segresnet:SegResNet"


def test_a_target_alone_is_enough(tmp_path: Path) -> None:
    config = load_config([f"model.target={TARGET}", "model.kwargs.init_filters=8"])
    assert config.model.model_dump() == {
        "name": "plugin", "target": TARGET, "kwargs": {"init_filters": 8}, "stride": 32
    }  # fmt: skip
    assert run_folder(config).name == f"SegResNet-{config_digest(config)}"
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


def test_an_entry_point_is_a_name_for_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"mynet": TARGET, "unet": "elsewhere:UNet"}
    for module in (plugins, compose):
        monkeypatch.setattr(module, "entry_points", {plugins.NETWORKS: points}.get)
    assert load_config(["model=mynet"]) == load_config([f"model.target={TARGET}"])
    assert load_config(["model=unet"]).model.name == "unet"  # the package's own come first
    with pytest.raises(ConfigError, match=r"did you mean mynet\?.*mynet"):
        load_config(["model=mynett"])


def test_a_loss_and_an_augmentation_have_entry_points_too(monkeypatch: pytest.MonkeyPatch) -> None:
    dice = "monai.losses.dice:DiceLoss"
    points = {
        plugins.LOSSES: {"mine": dice, "tversky": "elsewhere:Tversky"},
        plugins.AUGMENTATIONS: {"mine": "monai.transforms:RandFlip"},
    }
    for module in (plugins, compose):
        monkeypatch.setattr(module, "entry_points", lambda group: points.get(group, {}))
    config = load_config(["loss=mine", "loss.kwargs={softmax: true}", "augment=mine"])
    assert (config.loss.target, config.loss.kwargs) == (
        points[plugins.LOSSES]["mine"],
        {"softmax": True},
    )
    # An augmentation that stands for a preset is alone; one that is added to a preset is not.
    assert config.augment.target == "monai.transforms:RandFlip"
    assert config.augment.flip_probability == 0
    added = load_config(["augment.target=monai.transforms:RandFlip"]).augment
    assert added.flip_probability == 0.5
    assert load_config(["loss=tversky"]).loss.target is None
    with pytest.raises(ConfigError, match=r"did you mean mine\?.*mine"):
        load_config(["augment=mime"])


def test_entry_points_are_read_from_the_metadata_of_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "thing-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[{plugins.NETWORKS}]\nmynet = {TARGET}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert plugins.entry_points(plugins.NETWORKS) == {"mynet": TARGET}


@pytest.mark.parametrize(
    ("words", "where", "text"),
    [
        (["model.target=no_such_package.nets:Net"], "model.target", "PYTHONPATH"),
        (["model.target=__main__:Net"], "model.target", "install it"),
        (["model.target=monai.networks.nets"], "model.target", "package.module:Class"),
        (["model.target='os;ls:x'"], "model.target", "package.module:Class"),
        (["model=unet", f"model.target={TARGET}"], "model.target", "valid keys here"),
        (
            [f"model.target={TARGET}", "model.init_filters=8"],
            "model.init_filters",
            "model.kwargs.init_filters=8",
        ),
        (["model.kwargs.x=1"], "model.kwargs.x", "valid keys here"),
        (["loss.kwargs.x=1"], "loss.kwargs", "loss.target=package.module:Class"),
        (["augment.kwargs.x=1"], "augment.kwargs", "augment.target=package.module:Class"),
        (["loss.target=no_such_package.losses:Dice"], "loss.target", "PYTHONPATH"),
        (["augment.target=no_such_package:Flip"], "augment.target", "PYTHONPATH"),
        (["loss.target=monai.losses"], "loss.target", "Whoever trains"),
        (["loss.target=monai.losses:DiceLoss", "loss.top_k=0.2"], "loss.top_k", "loss.kwargs"),
        (
            ["loss.target=monai.losses:DiceLoss", "loss.class_weights={ball: 2}"],
            "loss.class_weights",
            "loss.kwargs",
        ),
    ],
)
def test_a_mistake_is_named(words: list[str], where: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(words)
    assert caught.value.where == where
    assert text in caught.value.remedy


def test_the_configuration_imports_nothing_of_a_target() -> None:
    before = set(sys.modules)
    load_config(["model.target=antigravity:Net"])  # a module of Python's that nobody imports
    assert "antigravity" not in set(sys.modules) - before
