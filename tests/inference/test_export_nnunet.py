"""A model written as a result folder of nnU-Net comes back as the same network.

`benchmarks/nnunet_export.py` compares the labels with those of nnU-Net's own predictor.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segresmamba.data import Preprocessing
from segresmamba.data.preprocessing import Normalisation
from segresmamba.errors import ConfigError
from segresmamba.inference.export import export_model
from segresmamba.inference.import_nnunet import import_nnunet, read_checkpoint
from segresmamba.inference.model import load_model
from segresmamba.inference.trained import open_models
from segresmamba.task.weights import load_network
from tests.inference.conftest import noise, write_run
from tests.inference.test_import import FIXTURES, RESULT

pytest.importorskip("dynamic_network_architectures", reason="nnU-Net's networks come from it")

LABELS = {"background": 0, "ball": 1, "box": 2}
CT = Normalisation(kind="ct", low=-100, high=200, mean=30, std=50)
RESENC = {"name": "resenc_unet", "features": [4, 8, 8], "blocks": [1, 2, 1]}
NETWORKS = {
    "resenc": RESENC,
    "deep": RESENC | {"deep_supervision": True},
    "dynunet": {"name": "dynunet", "filters": [4, 8, 8, 8], "deep_supervision": True},
    "plain": {
        "name": "nnunet",
        "features": [4, 8],
        "kernels": [[1, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2]],
        "blocks": [1, 2],
        "decoder_blocks": [1],
    },
}


def run_of(folder: Path, **changes: Any) -> Path:
    preprocessing = Preprocessing(spacing_mm=(2.0, 1.0, 1.0), normalisation=(CT,))
    given: dict[str, Any] = {"labels": LABELS, "preprocessing": preprocessing, "model": RESENC}
    return write_run(folder, **(given | changes))


def logits_of(folder: Path, number: int = 0) -> Tensor:
    """The logits of a random window, by the network of a run or a model folder."""
    model = open_models(folder)[number]
    channels = len(model.facts.channel_names)
    x_BCDHW = torch.randn(1, channels, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits: Tensor = load_network(model.weights, model.config).network.eval()(x_BCDHW)
    return logits


@pytest.mark.parametrize("network", NETWORKS)
def test_each_network_comes_back_with_the_same_logits(tmp_path: Path, network: str) -> None:
    run = run_of(tmp_path / "run", model=NETWORKS[network])
    out = export_model(run, tmp_path / "out", form="nnunet")
    back = import_nnunet(out, tmp_path / "back")
    torch.testing.assert_close(logits_of(back), logits_of(run), rtol=1e-5, atol=1e-5)
    (model,), (ours,) = open_models(back), open_models(run)
    assert model.facts.labels == LABELS
    assert model.facts.step == 0  # whole epochs of nnU-Net's
    assert model.config.augment.flip_axes == ours.config.augment.flip_axes


def test_the_files_are_those_that_nnunet_looks_for(tmp_path: Path) -> None:
    out = export_model(run_of(tmp_path / "run"), tmp_path / "out", form="nnunet")
    plans, dataset = (
        json.loads((out / name).read_text()) for name in ("plans.json", "dataset.json")
    )
    full = plans["configurations"]["3d_fullres"]
    assert (full["patch_size"], full["spacing"]) == ([16, 16, 16], [2.0, 1.0, 1.0])
    assert full["normalization_schemes"] == ["CTNormalization"]
    assert full["architecture"]["arch_kwargs"]["n_blocks_per_stage"] == [1, 2, 1]
    assert plans["image_reader_writer"] == "NibabelIOWithReorient"
    assert dataset["labels"] == LABELS
    content = read_checkpoint(out / "fold_0" / "checkpoint_final.pth")
    names = content["network_weights"].keys()
    encoder = {name for name in names if name.startswith("encoder.")}
    # nnU-Net loads strictly: its decoder names the encoder again, and has a head for each level.
    assert {name for name in names if name.startswith("decoder.encoder.")} == {
        f"decoder.{name}" for name in encoder
    }
    assert {f"decoder.seg_layers.{level}.weight" for level in (0, 1)} <= names
    assert set(json.loads((out / "model.json").read_text())["files"]) >= {
        "plans.json", "dataset.json", "fold_0/checkpoint_final.pth",
    }  # fmt: skip


def test_the_labels_of_an_image_are_the_same(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    export_model(run, tmp_path / "out", form="nnunet")
    back = import_nnunet(tmp_path / "out", tmp_path / "back")
    image = noise(20, 24, 18) * 3 - 100
    found, expected = (
        load_model(place, device="cpu").segment(image, spacing_mm=(2.0, 1.0, 1.0)).array
        for place in (back, run)
    )
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("case", ["ct", "mr"])
def test_an_imported_model_goes_back(tmp_path: Path, case: str) -> None:
    imported = import_nnunet(FIXTURES / case / RESULT, tmp_path / "imported")
    out = export_model(imported, tmp_path / "out", form="nnunet")
    back = import_nnunet(out, tmp_path / "back")
    torch.testing.assert_close(logits_of(back), logits_of(imported))
    (before,), (after,) = open_models(imported), open_models(back)
    assert replace(after.facts, dice=before.facts.dice) == before.facts
    assert after.config.data.regions == before.config.data.regions
    assert after.config.augment.flip_axes == before.config.augment.flip_axes


def test_networks_of_several_runs_are_folds(tmp_path: Path) -> None:
    for seed in (1, 2):
        run_of(tmp_path / "runs" / f"fold{seed}", seed=seed)
    out = export_model(tmp_path / "runs", tmp_path / "out", form="nnunet")
    back = import_nnunet(out, tmp_path / "back")
    for fold in (0, 1):
        torch.testing.assert_close(logits_of(back, fold), logits_of(tmp_path / "runs", fold))


def test_regions_are_painted_from_the_largest_to_the_smallest(tmp_path: Path) -> None:
    regions = {"core": [1, 5], "whole": [1, 2, 5], "enhancing": [5]}
    labels = {"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 5}
    run = run_of(tmp_path / "run", labels=labels, data={"regions": regions})
    out = export_model(run, tmp_path / "out", form="nnunet")
    dataset = json.loads((out / "dataset.json").read_text())
    assert list(dataset["labels"]) == ["background", "whole", "core", "enhancing"]
    assert dataset["regions_class_order"] == [2, 1, 5]
    back = import_nnunet(out, tmp_path / "back")
    torch.testing.assert_close(logits_of(back), logits_of(run)[:, [1, 0, 2]])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": {"name": "unet", "channels": [4, 8]}}, "no such network.*unet"),
        (
            {"model": {"name": "dynunet", "filters": [4, 8, 8], "res_block": True}},
            "no such network.*residual blocks",
        ),
        ({"data": {"patch": [18, 16, 16]}}, "multiples of their strides"),
        ({"labels": {"background": 0, "ball": 1, "box": 5}}, "number of a label's channel"),
        ({"preprocessing": Preprocessing(normalisation=(CT,))}, "keep their voxel size"),
        (
            {"preprocessing": Preprocessing(spacing_mm=(1, 1, 1))},
            "no counterpart of the normalisation of t1.*not 0",
        ),
        (
            {
                "preprocessing": Preprocessing(
                    spacing_mm=(1, 1, 1), normalisation=(Normalisation(kind="zscore-whole"),)
                )
            },
            "images that are not cropped",
        ),
        ({"data": {"regions": {"a": [1], "b": [2]}}}, "regions of one label each"),
        (
            {
                "labels": {"background": 0, "a": 1, "b": 2, "c": 3},
                "data": {"regions": {"one": [1, 2], "other": [2, 3]}},
            },
            "loses a label",
        ),
    ],
)
def test_what_nnunet_would_do_otherwise_is_refused(
    tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    run = run_of(tmp_path / "run", **changes)
    with pytest.raises(ConfigError, match=match) as caught:
        export_model(run, tmp_path / "out", form="nnunet")
    assert len(caught.value.screen()) < 1500
    assert not (tmp_path / "out").exists()


def test_folds_of_different_networks_are_refused(tmp_path: Path) -> None:
    run_of(tmp_path / "runs" / "a")
    run_of(tmp_path / "runs" / "b", model=NETWORKS["dynunet"])
    with pytest.raises(ConfigError, match="the folds of nnU-Net share one"):
        export_model(tmp_path / "runs", tmp_path / "out", form="nnunet")
