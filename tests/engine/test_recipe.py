"""Losses and augmentation of other packages in a run, and what is refused before it begins."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from segresmamba.engine import train
from segresmamba.errors import ConfigError
from tests.engine.tiny import journal_losses, tiny_config

OWN = (
    "augment=nnunet",
    "loss.target=monai.losses.dice:DiceCELoss",
    "loss.kwargs={softmax: true}",
    "augment.target=tests.data.stream.test_own_augmentation:Shift",
    "augment.kwargs={strength: 0.1, label: 0}",
)


def test_a_run_trains_with_a_loss_and_an_augmentation_of_another_package(
    tiny_store: Path, tmp_path: Path
) -> None:
    assert train(tiny_config(tiny_store, tmp_path, *OWN))["status"] == "finished"
    assert all(map(math.isfinite, journal_losses(tmp_path / "tiny").values()))


@pytest.mark.parametrize(
    ("word", "where"),
    [
        ("loss.target=monai.losses.dice:NoSuchLoss", "loss.target"),
        ("augment.target=monai.transforms:NoSuchChange", "augment.target"),
        ("loss.deep_supervision=[1,1,1]", "loss.deep_supervision"),
    ],
)
def test_a_recipe_that_cannot_be_trained_leaves_no_folder(
    tiny_store: Path, tmp_path: Path, word: str, where: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        train(tiny_config(tiny_store, tmp_path / "runs", "model.deep_supervision=true", word))
    assert caught.value.where == where
    assert not (tmp_path / "runs").exists()
