"""The model object of Python, and MLflow's layer on it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import segresmamba
from segresmamba.data import Preprocessing
from segresmamba.data.preprocessing import Normalisation
from segresmamba.errors import ConfigError, DataError
from segresmamba.inference.export import export_model
from segresmamba.inference.model import SegmentationModel, _load_pyfunc, load_model
from segresmamba.inference.options import InferenceOptions
from segresmamba.inference.postprocessing import Postprocessing, Rule, write_postprocessing
from segresmamba.inference.trained import open_models
from segresmamba.storage.run_folder import RunFolder
from tests.data.raw import AFFINE, write_nifti
from tests.inference.conftest import noise, write_run

SHAPE_XYZ = (18, 20, 22)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nifti(tmp_path_factory.mktemp("image") / "a_0000.nii.gz", noise(*SHAPE_XYZ))


def test_a_file_becomes_a_label_map_in_its_geometry(
    model_run: Path, image: Path, tmp_path: Path
) -> None:
    label = segresmamba.load_model(model_run).segment(image)
    assert label.array.shape == SHAPE_XYZ
    assert np.array_equal(label.affine, AFFINE)
    saved = nib.load(label.save(tmp_path / "label.nii.gz"))
    assert np.array_equal(np.asarray(saved.dataobj), label.array)
    with pytest.raises(DataError, match="probabilities=True"):
        _ = label.probabilities


def test_an_array_gives_the_label_of_the_file_that_holds_it(
    model_run: Path, tmp_path: Path
) -> None:
    data_DHW = noise(14, 20, 18)
    path = write_nifti(tmp_path / "image.nii.gz", data_DHW.T, np.diag([1.0, 1.0, 1.0, 1.0]))
    model = load_model(model_run)
    expected = model.segment(path).array.T
    for array in (data_DHW, data_DHW[None], data_DHW.astype(np.float64)):
        label = model.segment(array, probabilities=True)
        assert np.array_equal(label.array, expected)
        assert label.probabilities.shape == (3, *data_DHW.shape)


def test_probabilities_are_named_in_the_order_of_the_label_values(tmp_path: Path) -> None:
    labels = {"box": 5, "background": 0, "ball": 1}
    run = write_run(tmp_path / "run", labels=labels)
    model = load_model(run, device="cpu")
    assert model.outputs == ("background", "ball", "box")
    label = model.segment(noise(16, 16, 16), probabilities=True)
    for name, value in (("ball", 1), ("box", 5)):
        sure = label.probabilities[model.outputs.index(name)] > 0.6
        assert sure.any()
        assert (label.array[sure] == value).all()
    out = export_model(run, tmp_path / "out", form="bundle")
    named = json.loads((out / "configs" / "metadata.json").read_text())["network_data_format"]
    assert list(named["outputs"]["pred"]["channel_def"].values()) == ["background", "ball", "box"]


def test_an_array_is_seen_at_the_networks_voxel_size(tmp_path: Path) -> None:
    size = (2.0, 1.0, 1.0)
    run = write_run(tmp_path / "run", preprocessing=Preprocessing(trained_mm=(size, size)))
    model = load_model(run)
    data_DHW = noise(10, 20, 18)
    assert model.segment(data_DHW).affine[2, 2] == 2.0
    label = model.segment(np.repeat(data_DHW, 2, axis=0), spacing_mm=(1.0, 1.0, 1.0))
    assert label.array.shape == (20, 20, 18)
    assert np.array_equal(np.diag(label.affine), [1.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.ones((4, 4)), "trained on 1 channels.*0 of them"),
        (np.ones((2, 4, 4, 4)), "trained on 1 channels.*2 of them"),
        (np.full((1, 4, 4, 4), np.inf), "NaN or infinite"),
        (np.zeros((1, 4, 4, 4)), "no non-zero voxel"),
        (np.ones((1, 4, 0, 4)), "must have the axes"),
        (np.ones((1, 4, 4, 4), complex), "must be numbers.*complex128"),
        (np.full((1, 4, 4, 4), "1"), "must be numbers"),
        ([], "trained on 1 channels.*0 of them"),
    ],
)
def test_arrays_that_are_no_image_are_refused(model_run: Path, array: Any, match: str) -> None:
    with pytest.raises(DataError, match=match):
        load_model(model_run).segment(array)


@pytest.mark.parametrize(
    "size", [(-1.0, 1, 1), (0, 1, 1), (1, 1), 1.0, (1, 1, np.nan), (1, 1, "a")]
)
def test_a_voxel_size_that_there_cannot_be_is_refused(model_run: Path, size: Any) -> None:
    with pytest.raises(DataError, match="three positive numbers"):
        load_model(model_run).segment(noise(4, 5, 6), spacing_mm=size)


def test_a_file_has_its_own_voxel_size(model_run: Path, image: Path) -> None:
    with pytest.raises(DataError, match="files say the size"):
        load_model(model_run).segment(image, spacing_mm=(1.0, 1.0, 1.0))


def test_a_single_slice_is_warned_about(
    model_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_nifti(tmp_path / "thin.nii.gz", noise(9, 8, 2))
    load_model(model_run).segment(path)
    assert "single slice" not in caplog.text
    path = write_nifti(tmp_path / "slice.nii.gz", noise(9, 8, 1))
    load_model(model_run).segment(path)
    assert "slice.nii.gz is a single slice, of shape (9, 8, 1)" in caplog.text


def test_the_logits_of_several_models_are_averaged(fold_runs: Path, image: Path) -> None:
    both = load_model(fold_runs).segment(image, probabilities=True).probabilities
    single = [
        load_model(run).segment(image, probabilities=True).probabilities.astype(np.float64)
        for run in sorted(fold_runs.iterdir())
    ]
    mean = np.sqrt(single[0] * single[1])  # of logits: the geometric mean of probabilities
    np.testing.assert_allclose(both, mean / mean.sum(0), atol=0.01)
    assert not np.allclose(both, single[0], atol=0.05)


def test_mirroring_is_used_where_it_is_asked_for(model_run: Path, image: Path) -> None:
    plain = load_model(model_run).segment(image, probabilities=True).probabilities
    mirrored = load_model(model_run, tta=True).segment(image, probabilities=True).probabilities
    assert np.abs(plain.astype(np.float32) - mirrored).max() > 0.01


def test_the_rules_of_a_model_are_applied_to_its_label_maps(
    model_run: Path, image: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Path(shutil.copytree(model_run, tmp_path / "with"))
    rule = Rule(name="ball", values=(1,), minimum_mm3=1e9)
    write_postprocessing(RunFolder(run).best, Postprocessing(step=7, rules=(rule,)))
    assert (load_model(model_run).segment(image).array == 1).any()
    assert not (load_model(run).segment(image).array == 1).any()
    assert (load_model(run, postprocessing=False).segment(image).array == 1).any()
    mixed = [*open_models(run), *open_models(model_run)]
    assert not SegmentationModel(mixed).rules
    assert "different post-processing" in caplog.text


def test_a_ct_that_is_not_in_hounsfield_units_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")  # whatever an earlier test has set
    ct = Normalisation(kind="ct", low=-50, high=250, mean=60, std=70)
    run = write_run(
        tmp_path / "run", channels=("CT",), preprocessing=Preprocessing(normalisation=(ct,))
    )
    model, data_DHW = load_model(run), noise(14, 15, 16)
    model.segment(10 * data_DHW - 500)
    assert not caplog.text
    model.segment(data_DHW / 100)
    assert "channel CT has intensities from 0.0" in caplog.text
    assert "trained on -50 to 250" in caplog.text


def test_options_that_do_not_exist_are_refused(model_run: Path) -> None:
    for options, match in (
        ({"device": "cuda:9"}, r"--device: cuda:9\] choose among auto, cpu"),
        ({"precision": "fp8"}, "no such precision"),
        ({"overlap": 1.0}, "share of their size"),
    ):
        with pytest.raises(ConfigError, match=match):
            load_model(model_run, **options)
    assert InferenceOptions(device="cpu").torch_device() == torch.device("cpu")


def test_a_saved_mlflow_model_segments_files_and_arrays(
    model_run: Path, image: Path, tmp_path: Path
) -> None:
    saved = Path(shutil.copytree(RunFolder(model_run).best.parent, tmp_path / "best"))
    shutil.copy(RunFolder(model_run).config, saved)
    served, model = _load_pyfunc(str(saved)), load_model(model_run)
    (label,) = served.predict([str(image)])
    assert label.dtype == np.int16
    assert np.array_equal(label, model.segment(image).array)
    array_CDHW = noise(1, 14, 20, 18)
    (label,) = served.predict([array_CDHW.tolist()])
    assert np.array_equal(label, model.segment(array_CDHW).array)
    (label,) = served.predict(array_CDHW)  # a row for each channel
    assert np.array_equal(label, model.segment(array_CDHW).array)


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, segresmamba; assert 'load_model' in dir(segresmamba); "
        "assert not {'torch', 'numpy', 'nibabel'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'load_models'"):
        _ = segresmamba.load_models
