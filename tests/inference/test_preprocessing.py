"""A store's policy from training to a prediction in the geometry of the files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from segresmamba import data
from segresmamba.config import Config
from segresmamba.engine import train
from segresmamba.errors import DataError
from segresmamba.evaluation import evaluate_run
from segresmamba.evaluation.metrics import score
from segresmamba.evaluation.score_cases import evaluate_cases
from segresmamba.inference import predict
from segresmamba.inference.model import PreparedCase, load_model
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.weights import read_facts
from tests.data.raw import describe, image_path, label_path, write_nifti, write_raw
from tests.engine.tiny import tiny_config

POLICY = data.Policy.from_options(spacing="2,1.5,1.2", crop=True, intensity="auto", dtype="auto")
CASE = "case_1"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT of which a part was never scanned."""
    raw = write_raw(tmp_path_factory.mktemp("ct") / "raw", shapes=[(44, 50, 48)] * 3)
    describe(raw, channel_names={"0": "CT"})
    for number in range(3):
        label = np.asarray(nib.load(label_path(raw, f"case_{number}")).dataobj)
        noise = np.random.default_rng(number).normal(0, 2, label.shape)
        image = (100 + 80.0 * label + noise).astype(np.int16)
        image[:, :, 44:] = 0
        write_nifti(image_path(raw, f"case_{number}"), image)
    return raw


@pytest.fixture(scope="module")
def store(raw: Path) -> Path:
    data.convert(raw, raw.parent / "store", policy=POLICY)
    return raw.parent / "store"


class Brighter(torch.nn.Module):
    """Sees as ball whatever is brighter than a normalised intensity, and is sure of it."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = torch.nn.Parameter(torch.tensor(least))

    def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        return torch.cat([0 * x_BCDHW, 99 * (x_BCDHW - self.least), 0 * x_BCDHW - 999], dim=1)


def test_scores_are_those_of_the_label_in_its_file(raw: Path, store: Path) -> None:
    config = Config.model_validate({"data": {"store": str(store), "patch": [24, 24, 24]}})
    dataset = data.open_dataset(store)
    of_ct = dataset.preprocessing.normalisation[0]
    network = Brighter((177 - of_ct.mean) / of_ct.std)
    (result,) = evaluate_cases(network, dataset, [CASE], config, torch.device("cpu"))
    image, label = (nib.load(path(raw, CASE)) for path in (image_path, label_path))
    reference = np.asarray(label.dataobj)
    assert dataset[CASE].shape_DHW != reference.T.shape
    voxel_ml = np.prod(nib.affines.voxel_sizes(label.affine)) / 1000
    assert result.scores["box"].reference_ml == pytest.approx((reference == 2).sum() * voxel_ml)
    # The same on the files themselves: what is lost on the way there and back is little.
    bright = (np.asarray(image.dataobj) > 177).astype(np.uint8)
    expected = score(bright, reference, {"ball": (1,)}, nib.affines.voxel_sizes(label.affine))
    assert expected["ball"].dice > 0.8
    assert result.scores["ball"].dice == pytest.approx(expected["ball"].dice, abs=0.15)


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    settings = ("data.patch=[16,16,16]", "train.max_steps=3", "train.lr=1e-2")
    return Path(train(tiny_config(store, root, *settings))["folder"])


def test_a_new_image_is_treated_as_those_of_the_store(
    raw: Path, store: Path, run: Path, tmp_path: Path
) -> None:
    predict(run, [image_path(raw, CASE)], tmp_path / "label.nii.gz")
    label, image = nib.load(tmp_path / "label.nii.gz"), nib.load(image_path(raw, CASE))
    assert label.shape == image.shape
    np.testing.assert_array_equal(label.affine, image.affine)

    dataset = data.open_dataset(store)
    assert read_facts(RunFolder(run).best).preprocessing == dataset.preprocessing
    expected = load_model(run).segment_prepared(PreparedCase.of_stored(dataset[CASE]))
    np.testing.assert_array_equal(np.asarray(label.dataobj), expected.array)


def test_a_store_that_was_converted_anew_under_another_policy_is_not_evaluated(
    raw: Path, store: Path, run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "store"
    data.convert(raw, other)
    folder = tmp_path / "run"
    (folder / "best").mkdir(parents=True)
    config = (run / "config.yaml").read_text().replace(str(store), str(other))
    (folder / "config.yaml").write_text(config)
    RunFolder(folder).best.hardlink_to(RunFolder(run).best)
    with pytest.raises(DataError, match="another policy") as caught:
        evaluate_run(folder)
    assert caught.value.where == str(other)
