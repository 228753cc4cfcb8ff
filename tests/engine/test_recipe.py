"""Losses and augmentation of other packages in a run, and what is refused before it begins."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from segresmamba.engine import request_stop, train
from segresmamba.errors import ConfigError
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.weights import read_weights
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


@pytest.mark.parametrize("stage", range(4))
def test_a_run_with_an_output_that_does_not_count_is_saved_and_goes_on(
    tiny_store: Path, tmp_path: Path, stage: int
) -> None:
    words = ("model.dims=[8,8,8]", "model.deep_supervision=true", "loss.deep_supervision=[1]")
    words = (*words, f"train.zero_stage={stage}", "train.checkpoint_every=2", "train.fold=none")
    train(tiny_config(tiny_store, tmp_path, *words, "run.name=whole"))
    request_stop()
    train(tiny_config(tiny_store, tmp_path, *words))
    assert train(tiny_config(tiny_store, tmp_path, *words))["status"] == "finished"
    whole, tiny = (read_weights(RunFolder(tmp_path / name).best)[0] for name in ("whole", "tiny"))
    assert whole.keys() == tiny.keys()
    for name, value in whole.items():
        torch.testing.assert_close(tiny[name], value, atol=1e-5, rtol=0, msg=name)


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
