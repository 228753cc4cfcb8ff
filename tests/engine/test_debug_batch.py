"""Where a broken value comes from, when the batch of a skipped step is repeated."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from segresmamba.data import Case
from segresmamba.engine import train
from segresmamba.engine.debug_batch import Diagnosis, debug_batch
from segresmamba.errors import UserError
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.losses import SegmentationLoss
from tests.engine.tiny import tiny_config


@pytest.fixture(scope="module")
def _skipping(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    forward = SegmentationLoss.forward

    def spoilt(self: SegmentationLoss, *arguments: Any) -> torch.Tensor:
        return forward(self, *arguments) * math.nan

    root = tmp_path_factory.mktemp("skipping")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        patch.setattr(SegmentationLoss, "forward", spoilt)
        train(tiny_config(tiny_store, root, "train.max_steps=2"))
    return root / "tiny"


@pytest.fixture
def run(_skipping: Path, tmp_path: Path) -> Path:
    """A run that has skipped its two steps, because its loss was nan."""
    return Path(shutil.copytree(_skipping, tmp_path / "tiny"))


def cause(run: Path) -> str:
    (found,) = debug_batch(run)
    return str(found)


def test_a_batch_that_is_finite_here_is_said_to_be(run: Path) -> None:
    (found,) = debug_batch(run, 1)
    assert (found.rank, found.crops, found.loss_then, found.cause) == (0, [0, 1], "nan", None)
    assert "all values are finite on this machine" in str(found)


def test_the_crops_of_the_last_skipped_step_are_read_again_where_the_store_is_now(
    run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    kept = json.loads(RunFolder(run).skipped.read_text().splitlines()[-1])["batches"]
    store = shutil.copytree(tiny_store, tmp_path / "moved")
    assert debug_batch(run, store=str(store)) == [
        Diagnosis(0, [2, 3], kept[0]["cases"], "nan", None)
    ]


def test_a_broken_input_is_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crop_into = Case.crop_into

    def broken(self: Case, start: Any, image: Any, label: Any) -> None:
        crop_into(self, start, image, label)
        image[0, 3, 4, 5] = math.inf

    monkeypatch.setattr(Case, "crop_into", broken)
    assert "input: 1 of 65536 values are not finite in crop 2, of case " in cause(run)


def test_a_broken_weight_is_found(run: Path) -> None:
    path = RunFolder(run).skipped_weights
    content = torch.load(path, weights_only=True)
    name = list(content["weights"])[3]
    content["weights"][name].view(-1)[0] = math.nan
    torch.save(content, path)
    assert f"weight: {name} is not finite" in cause(run)


def test_the_first_layer_whose_output_is_broken_is_found(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = torch.nn.InstanceNorm3d.forward

    def broken(self: torch.nn.InstanceNorm3d, x: torch.Tensor) -> torch.Tensor:
        return forward(self, x) / 0

    monkeypatch.setattr(torch.nn.InstanceNorm3d, "forward", broken)
    assert "(InstanceNorm3d): " in cause(run)
    assert "in its output, from finite input" in cause(run)


def test_a_broken_loss_is_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = SegmentationLoss.forward
    monkeypatch.setattr(SegmentationLoss, "forward", lambda s, *a: forward(s, *a) * math.nan)
    assert "loss: it is nan, and the logits are all finite" in cause(run)


def test_a_broken_gradient_is_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = SegmentationLoss.forward

    def broken(self: SegmentationLoss, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        zero = (logits - logits.detach()).abs().sum()
        return forward(self, logits, label) + zero.sqrt()

    monkeypatch.setattr(SegmentationLoss, "forward", broken)
    assert "gradient: " in cause(run)
    assert "at the output of layer the network (SegResMamba)" in cause(run)


@pytest.mark.parametrize(("step", "said"), [(7, "one of \\[1, 2\\]"), (None, "skipped no step")])
def test_a_step_that_was_not_skipped_is_refused(run: Path, step: int | None, said: str) -> None:
    if step is None:
        RunFolder(run).skipped.unlink()
    with pytest.raises(UserError, match=said):
        debug_batch(run, step)
