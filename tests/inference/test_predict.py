from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from segresmamba.data.volumes.voxel_file import open_voxels
from segresmamba.engine import train
from segresmamba.errors import CheckpointError, DataError
from segresmamba.evaluation import evaluate_run
from segresmamba.inference import predict
from segresmamba.inference.model import _load_pyfunc, load_model
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.weights import read_weights, save_weights
from tests.data.raw import write_nifti
from tests.engine.tiny import tiny_config


@pytest.fixture(scope="module")
def run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has been trained for a few steps."""
    root = tmp_path_factory.mktemp("runs")
    settings = ("train.max_steps=8", "train.lr=1e-2", "validation.overlays=1")
    return Path(train(tiny_config(tiny_store, root, *settings))["folder"])


def images_of(store: Path, case: str) -> list[Path]:
    return sorted((store.parent / "raw" / "imagesTr").glob(f"{case}_*.nii.gz"))


def test_evaluation_leaves_results_pictures_and_metrics_in_the_run(run: Path) -> None:
    evaluation = evaluate_run(run)
    results = json.loads(evaluation.results.read_text())
    assert results["checkpoint"] == str(run / "best" / "weights.safetensors")
    assert len(list(evaluation.overlays.glob("*.png"))) == 1
    last = json.loads((run / "journal.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "status"
    assert "evaluation/dice/ball" in (run / "journal.jsonl").read_text()


def test_a_prediction_has_the_geometry_of_its_image(
    run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    images = images_of(tiny_store, "case0")
    predict(run, images, tmp_path / "label.nii.gz")
    image, label = nib.load(images[0]), nib.load(tmp_path / "label.nii.gz")
    assert label.shape == image.shape
    np.testing.assert_array_equal(label.affine, image.affine)
    assert set(np.unique(label.dataobj)) <= {0, 1, 2}
    assert [path.name for path in tmp_path.iterdir()] == ["label.nii.gz"]


def test_an_image_of_another_voxel_size_is_seen_at_the_networks(
    run: Path, tiny_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fine = []
    for path in images_of(tiny_store, "case0"):
        image = nib.load(path)
        data_XYZ = np.repeat(np.asarray(image.dataobj), 2, axis=0)
        affine = image.affine @ np.diag([0.5, 1, 1, 1])
        fine.append(write_nifti(tmp_path / path.name, data_XYZ, affine))
    with caplog.at_level("INFO"):
        predict(run, images_of(tiny_store, "case0"), tmp_path / "same.nii.gz")
        assert "resampled" not in caplog.text
        predict(run, fine, tmp_path / "label.nii.gz")
    assert "on which the network was trained" in caplog.text
    assert nib.load(tmp_path / "label.nii.gz").shape == nib.load(fine[0]).shape


def test_a_prediction_needs_every_channel(run: Path, tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"image: 1 of them\] give a file for each channel.*channel0, channel1"
    ):
        predict(run, images_of(tiny_store, "case0")[:1], tmp_path / "label.nii.gz")
    assert not list(tmp_path.iterdir())


def test_a_run_without_weights_cannot_be_evaluated(
    run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(CheckpointError, match=r"best/weights\.safetensors"):
        evaluate_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "match"), [("label.txt", "files of this kind"), ("no/label.nii.gz", "does not exist")]
)
def test_an_impossible_output_is_refused_before_anything_is_computed(
    run: Path, tiny_store: Path, tmp_path: Path, name: str, match: str
) -> None:
    with pytest.raises(DataError, match=match):
        predict(run, images_of(tiny_store, "case0"), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_images_in_another_order_are_refused_by_every_way_in(
    run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    images = images_of(tiny_store, "case0")[::-1]
    with pytest.raises(DataError, match="its name says"):
        predict(run, images, tmp_path / "label.nii.gz")
    with pytest.raises(DataError, match="its name says"):
        load_model(run).segment(images)


def test_a_label_map_replaces_no_image_and_no_store(
    run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    images = [Path(shutil.copy(one, tmp_path)) for one in images_of(tiny_store, "case0")]
    link = tmp_path / "label.nii.gz"
    link.symlink_to(images[1])
    for out in (*images, link):
        with pytest.raises(DataError, match="would replace the image"):
            predict(run, images, out)
    with pytest.raises(DataError, match="would replace the image"):
        load_model(run).segment(images).save(images[0])
    store = shutil.copytree(tiny_store, tmp_path / "store.zarr")
    with pytest.raises(DataError, match="no label map"):
        predict(run, images, store)
    assert (store / "dataset.json").exists()
    assert open_voxels(images[0]).dtype != np.uint8


def test_a_prediction_does_not_need_the_dataset_of_the_run(
    run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(run, elsewhere)
    config = (elsewhere / "config.yaml").read_text().replace(str(tiny_store), "/gone")
    (elsewhere / "config.yaml").write_text(config)
    predict(elsewhere, images_of(tiny_store, "case0"), tmp_path / "label.nii.gz")
    assert (tmp_path / "label.nii.gz").exists()


def test_an_evaluation_leaves_the_status_of_the_run_as_it_was(
    run: Path, tmp_path: Path, tiny_store: Path
) -> None:
    preempted = tmp_path / "run"
    shutil.copytree(run, preempted)
    with (preempted / "journal.jsonl").open("a") as journal:
        journal.write('{"kind": "status", "time_ms": 0, "status": "preempted"}\n')
    evaluate_run(preempted)
    last = json.loads((preempted / "journal.jsonl").read_text().splitlines()[-1])
    assert last["status"] == "preempted"


def test_weights_that_are_not_finite_are_used_by_nothing(
    run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    folder = RunFolder(Path(shutil.copytree(run, tmp_path / "run")))
    shutil.copy(folder.config, folder.best.parent)  # as a saved MLflow model has it
    weights, facts = read_weights(folder.best)
    name = list(weights)[-1]
    weights[name].fill_(float("nan"))
    save_weights(folder.best, weights, facts)
    label = tmp_path / "label.nii.gz"
    uses: list[Callable[[], object]] = [
        lambda: predict(folder.path, images_of(tiny_store, "case0"), label),
        lambda: evaluate_run(folder.path),
        lambda: _load_pyfunc(str(folder.best.parent)),
    ]
    for use in uses:
        with pytest.raises(CheckpointError, match=f"{folder.best}.*{name} has nan or inf"):
            use()
    assert not label.exists()
