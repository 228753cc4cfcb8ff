from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segresmamba import data
from segresmamba.config import Config
from segresmamba.evaluation.metrics import Score
from segresmamba.evaluation.score_cases import (
    CaseResult,
    Summary,
    evaluate_cases,
)

CPU = torch.device("cpu")
CASES = ("case_a", "case_b")
SHAPE_XYZ = (20, 24, 28)
# Voxel axes run towards posterior, superior and left, with a spacing of their own each.
AFFINE = np.array([[0, 0, -1.5, 20], [-1, 0, 0, 30], [0, 3, 0, -10], [0, 0, 0, 1.0]])
SUPERIOR_MM = 3.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two converted cases whose channels tell the label: channel k is bright in class k + 1."""
    raw = tmp_path_factory.mktemp("raw") / "Dataset001_Coded"
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    manifest = {
        "channel_names": {"0": "ball", "1": "box"},
        "labels": {"background": 0, "ball": 1, "box": 2},
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(manifest))
    for offset, case_id in enumerate(CASES):
        label = np.zeros(SHAPE_XYZ, np.uint8)
        label[4 + offset : 11, 8:15, 5:12] = 1
        label[4 + offset : 9, 10:18, 16:22] = 2
        nib.Nifti1Image(label, AFFINE).to_filename(raw / "labelsTr" / f"{case_id}.nii.gz")
        for channel in (0, 1):
            image = np.where(label == channel + 1, 100, 10).astype(np.float32)
            path = raw / "imagesTr" / f"{case_id}_{channel:04d}.nii.gz"
            nib.Nifti1Image(image, AFFINE).to_filename(path)
    converted = raw.parent / "store"
    data.convert(raw, converted)
    return converted


class Oracle(nn.Module):
    """Reads the label off the channels; may be made to shift it, or to see nothing."""

    def __init__(self, weight_KC: list[list[float]], shift_D: int = 0) -> None:
        super().__init__()
        self.weight_KC = nn.Parameter(torch.tensor(weight_KC))
        self.shift_D = shift_D

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        return torch.einsum("kc,bcdhw->bkdhw", self.weight_KC, x_BCDHW).roll(self.shift_D, 2)


LABELS_KC = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
REGIONS = {"all": (1, 2), "box": (2,)}
REGIONS_KC = [[1.0, 1.0], [0.0, 1.0]]


def evaluate(
    store: Path, network: nn.Module, patch: Sequence[int] = (24, 24, 32), regions: Any = None
) -> list[CaseResult]:
    config = Config.model_validate(
        {
            "data": {
                "store": str(store),
                "patch": patch,
                "regions": regions,
            },
            "validation": {"overlap": 0.25},
        }
    )
    return evaluate_cases(network, data.open_dataset(str(store)), CASES, config, CPU)


@pytest.mark.parametrize("patch", [[24, 24, 32], [16, 8, 16]], ids=["one window", "many"])
@pytest.mark.parametrize(
    ("weights", "regions"),
    [(LABELS_KC, None), (REGIONS_KC, REGIONS)],
    ids=["labels", "regions"],
)
def test_an_oracle_is_perfect(
    store: Path, patch: list[int], weights: list[list[float]], regions: Any
) -> None:
    results = evaluate(store, Oracle(weights), patch=patch, regions=regions)
    assert [result.case_id for result in results] == list(CASES)
    summary = Summary.from_results(results)
    assert list(summary.classes) == list(regions or ["ball", "box"])
    assert (summary.mean.dice, summary.mean.hd95_mm, summary.mean.one_sided) == (1.0, 0.0, 0)


def test_voxels_without_annotation_are_left_out_of_scores(store: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(store.parent / "Dataset001_Coded", raw)
    described = json.loads((raw / "dataset.json").read_text())
    described["labels"]["ignore"] = 3
    (raw / "dataset.json").write_text(json.dumps(described))
    for path in (raw / "labelsTr").iterdir():
        label = nib.load(path)
        values = np.asarray(label.dataobj).copy()
        values[8:] = 3  # the image shows ball and box there too
        nib.Nifti1Image(values, label.affine).to_filename(path)
    data.convert(raw, tmp_path / "store")
    first, _ = evaluate(tmp_path / "store", Oracle(LABELS_KC))
    assert first.dice == 1
    assert first.scores["ball"].prediction_ml == first.scores["ball"].reference_ml


def test_distances_and_volumes_are_those_of_the_original_grid(store: Path) -> None:
    first, _ = evaluate(store, Oracle(LABELS_KC, shift_D=1))
    ball = first.scores["ball"]
    assert ball.hd95_mm == pytest.approx(SUPERIOR_MM)
    assert ball.dice == pytest.approx(6 / 7)
    assert ball.reference_ml == pytest.approx(7 * 7 * 7 * 1 * 3 * 1.5 / 1000)
    assert ball.prediction_ml == pytest.approx(ball.reference_ml)


def test_a_network_that_sees_nothing_scores_zero_and_is_counted(store: Path) -> None:
    summary = Summary.from_results(evaluate(store, Oracle([[0.0, 0.0]] * 3)))
    assert summary.mean.dice == 0
    assert summary.mean.one_sided == 4
    assert summary.mean.hd95_mm == pytest.approx(np.linalg.norm([20 * 1, 24 * 3, 28 * 1.5]))


def test_the_network_gets_its_training_mode_back(store: Path) -> None:
    network = Oracle(LABELS_KC).train()
    evaluate(store, network)
    assert network.training


def score(dice: float, hd95_mm: float, *, prediction_ml: float = 1.0) -> Score:
    return Score(dice, hd95_mm, reference_ml=1.0, prediction_ml=prediction_ml)


RESULTS = [
    CaseResult("first", {"ball": score(0.8, 1.0), "box": score(0.6, 3.0)}),
    CaseResult("second", {"ball": score(0.9, 2.0), "box": score(0.0, 50.0, prediction_ml=0.0)}),
]


def test_means_are_over_cases_and_then_over_classes() -> None:
    summary = Summary.from_results(RESULTS)
    assert summary.metrics() == pytest.approx(
        {
            "dice/mean": 0.575,
            "dice/ball": 0.85,
            "dice/box": 0.3,
            "hd95_mm/mean": 14.0,
            "hd95_mm/ball": 1.5,
            "hd95_mm/box": 26.5,
        }
    )
    assert (summary.classes["ball"].one_sided, summary.classes["box"].one_sided) == (0, 1)
