"""Many cases into a folder: what is written, what a second start does, what a fault leaves."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import zarr

from segresmamba.data.volumes.voxel_file import open_voxels
from segresmamba.errors import ConfigError, DataError, UserError, is_passing
from segresmamba.evaluation import Scoring, evaluate_folders
from segresmamba.inference.energy import CaseMeter
from segresmamba.inference.label_map import LabelMap
from segresmamba.inference.model import load_model
from segresmamba.inference.options import InferenceOptions
from segresmamba.inference.postprocessing import Postprocessing, Rule, write_postprocessing
from segresmamba.inference.predict import PredictRequest, predict_cases, predict_file
from segresmamba.storage.run_folder import RunFolder
from segresmamba.view.cases import ViewRequest
from segresmamba.view.volumes import Grid
from tests.data.raw import AFFINE, write_nifti
from tests.inference.conftest import OWN_NETWORK, noise, write_run

SHAPE = (18, 20, 22)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two cases of one channel."""
    folder = tmp_path / "imagesTs"
    folder.mkdir()
    for number in range(2):
        write_nifti(folder / f"case_{number}_0000.nii.gz", noise(*SHAPE, seed=number))
    return folder


def request(model: Path, images: Path, **changes: Any) -> PredictRequest:
    changes.setdefault("out", images.parent / "out")
    return PredictRequest((model,), (str(images),), **changes)


def test_each_case_gets_the_label_map_that_the_model_makes_of_it(
    model_run: Path, images: Path
) -> None:
    found = predict_cases(request(model_run, images))
    assert found.written == ("case_0", "case_1")
    out = images.parent / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        ".predict", "case_0.nii.gz", "case_1.nii.gz", "predict.json",
    ]  # fmt: skip
    model = load_model(model_run)
    for case in found.written:
        expected = model.segment(images / f"{case}_0000.nii.gz")
        label = nib.load(out / f"{case}.nii.gz")
        assert np.array_equal(label.affine, AFFINE)
        assert np.array_equal(np.asarray(label.dataobj), expected.array)
        assert set(np.unique(expected.array)) <= {0, 1, 5}
    summary = json.loads((out / "predict.json").read_text())
    assert set(summary["cases"]) == {"case_0", "case_1"}
    assert summary["cases"]["case_0"]["seconds"] > 0
    assert summary["settings"]["tta"] is False
    assert len(summary["models"]) == 1
    assert summary["labels"] == {"background": 0, "ball": 1, "box": 5}
    assert "power" not in summary["cases"]["case_0"]  # it was not asked for


def test_a_second_start_segments_only_what_is_missing_or_has_changed(
    model_run: Path, fold_runs: Path, images: Path
) -> None:
    predict_cases(request(model_run, images))
    assert predict_cases(request(model_run, images)).skipped == ("case_0", "case_1")
    (images.parent / "out" / "case_0.nii.gz").unlink()
    write_nifti(images / "case_2_0000.nii.gz", noise(*SHAPE, seed=2))
    found = predict_cases(request(model_run, images))
    assert (found.written, found.skipped) == (("case_0", "case_2"), ("case_1",))
    write_nifti(images / "case_1_0000.nii.gz", noise(*SHAPE, seed=3))
    assert predict_cases(request(model_run, images)).written == ("case_1",)
    denser = request(model_run, images, options=InferenceOptions(overlap=0.75))
    assert len(predict_cases(denser).written) == 3
    assert len(predict_cases(request(fold_runs, images)).written) == 3


def test_other_rules_of_the_same_weights_are_another_model(
    model_run: Path, images: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(model_run, tmp_path / "run"))
    predict_cases(request(run, images))
    assert len(predict_cases(request(model_run, images)).skipped) == 2  # a copy is the same model
    rule = Rule(name="ball", values=(1,), keep_largest=True)
    write_postprocessing(RunFolder(run).best, Postprocessing(step=7, rules=(rule,)))
    assert len(predict_cases(request(run, images)).written) == 2


def test_a_bad_case_is_named_and_the_others_are_done(
    model_run: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {
        "nan": np.full(SHAPE, np.nan, np.float32),
        "flat": np.ones(SHAPE[:2], np.float32),
        "series": np.ones((*SHAPE, 2), np.float32),
        "zero": np.zeros(SHAPE, np.float32),
    }
    for name, data in bad.items():
        write_nifti(images / f"{name}_0000.nii.gz", data)
    cut = (images / "case_0_0000.nii.gz").read_bytes()
    (images / "cut_0000.nii.gz").write_bytes(cut[: len(cut) // 2])
    (images / "empty_0000.nii.gz").touch()
    found = predict_cases(request(model_run, images))
    assert found.written == ("case_0", "case_1")
    assert set(found.failed) == {*bad, "cut", "empty"}
    assert found.failed["nan"] == "voxels are NaN or infinite"
    assert str(images / "cut_0000.nii.gz") in caplog.text
    labels = {path.name for path in (images.parent / "out").glob("*.nii.gz")}
    assert labels == {"case_0.nii.gz", "case_1.nii.gz"}


def test_a_missing_channel_is_the_fault_of_its_case_alone(images: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", channels=("t1", "t2"))
    shutil.copy(images / "case_1_0000.nii.gz", images / "case_1_0001.nii.gz")
    found = predict_cases(request(run, images))
    assert found.written == ("case_1",)
    assert found.failed == {"case_0": "a file is missing"}


def test_a_full_disk_ends_the_prediction_and_leaves_nothing_half_written(
    model_run: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")

    def save(image: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise full

    with monkeypatch.context() as patched:
        patched.setattr(nib.Nifti1Image, "to_filename", save)
        with pytest.raises(DataError, match="No space left") as caught:
            predict_cases(request(model_run, images))
    assert is_passing(caught.value)
    assert not list((images.parent / "out").glob("*case*"))
    assert len(predict_cases(request(model_run, images)).written) == 2


def test_a_file_of_unknown_origin_is_not_replaced(model_run: Path, images: Path) -> None:
    out = images.parent / "out"
    out.mkdir()
    (out / "case_0.nii.gz").write_text("a reference")
    found = predict_cases(request(model_run, images))
    assert found.written == ("case_1",)
    assert "has not written" in found.failed["case_0"]
    assert (out / "case_0.nii.gz").read_text() == "a reference"


def test_probabilities_do_not_replace_a_folder_of_unknown_origin(
    model_run: Path, images: Path
) -> None:
    mine = images.parent / "out" / "case_0.probabilities.zarr"
    mine.mkdir(parents=True)
    (mine / "notes").touch()
    found = predict_cases(request(model_run, images, probabilities=True))
    assert found.written == ("case_1",)
    assert "a folder of that name" in found.failed["case_0"]
    assert (mine / "notes").exists()


def test_a_label_map_in_another_format_does_not_hide_that_one_is_outdated(
    model_run: Path, fold_runs: Path, images: Path
) -> None:
    other = fold_runs / "fold1"
    predict_cases(request(model_run, images))
    predict_cases(request(other, images, format="nrrd"))
    assert predict_cases(request(other, images)).written == ("case_0", "case_1")
    label = nib.load(images.parent / "out" / "case_0.nii.gz")
    expected = load_model(other).segment(images / "case_0_0000.nii.gz")
    assert np.array_equal(np.asarray(label.dataobj), expected.array)


def test_probabilities_that_are_gone_are_computed_again(model_run: Path, images: Path) -> None:
    asked = request(model_run, images, probabilities=True)
    predict_cases(asked)
    gone = images.parent / "out" / "case_1.probabilities.zarr"
    shutil.rmtree(gone)
    found = predict_cases(asked)
    assert (found.written, found.skipped) == (("case_1",), ("case_0",))
    assert gone.is_dir()


def test_probabilities_of_an_earlier_prediction_are_warned_about(
    model_run: Path, fold_runs: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")  # whatever an earlier test has set
    predict_cases(request(model_run, images, probabilities=True))
    assert not caplog.records
    predict_cases(request(fold_runs, images))
    assert "case_1.probabilities.zarr is of an earlier prediction" in caplog.text


def test_a_file_ending_in_capitals_is_none_of_the_case_name(model_run: Path, images: Path) -> None:
    (images / "case_0_0000.nii.gz").rename(images / "CASE_0000.NII.GZ")
    assert predict_cases(request(model_run, images)).written == ("CASE", "case_1")
    assert (images.parent / "out" / "CASE.nii.gz").exists()


@pytest.mark.parametrize("inside", [".", "labels"])
def test_an_output_inside_the_input_is_refused(model_run: Path, images: Path, inside: str) -> None:
    with pytest.raises(DataError, match="inside the input"):
        predict_cases(request(model_run, images, out=images / inside))
    with pytest.raises(DataError, match="inside the input"):
        predict_file(request(model_run, images, out=images / inside / "label.nii.gz"))
    assert len(list(images.iterdir())) == 2


def test_weights_that_cannot_be_read_leave_no_folder_behind(images: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    weights = RunFolder(run).best
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(UserError, match="cannot be read"):
        predict_cases(request(run, images))
    assert not (images.parent / "out").exists()


@pytest.mark.parametrize(
    "names", [["zarr.json"], ["config.yaml", "journal.jsonl"], ["model.json"], ["manifest.json"]]
)
def test_a_store_or_a_run_is_not_filled_with_label_maps(
    model_run: Path, images: Path, names: list[str]
) -> None:
    out = images.parent / "out"
    out.mkdir()
    for name in names:
        (out / name).touch()
    with pytest.raises(ConfigError, match="something else"):
        predict_cases(request(model_run, images))
    assert sorted(path.name for path in out.iterdir()) == names
    inside = request(model_run, images, out=out / "predictions")
    assert len(predict_cases(inside).written) == 2


def test_two_outputs_of_one_name_are_refused_before_anything_is_written(
    model_run: Path, images: Path
) -> None:
    (images / "case_1_0000.nii.gz").rename(images / "case_0.probabilities_0000.nii.gz")
    asked = request(model_run, images, format="zarr", probabilities=True)
    with pytest.raises(DataError, match=r"one file .*case_0\.probabilities and case_0"):
        predict_cases(asked)
    image, out = images / "case_0_0000.nii.gz", images.parent / "case_0.probabilities.zarr"
    with pytest.raises(ConfigError, match="to one file"):
        predict_file(request(model_run, image, out=out, probabilities=True))
    assert list(images.parent.iterdir()) == [images]
    assert len(predict_cases(replace(asked, format=None)).written) == 2


_KILLED = """
import os, signal, sys
from pathlib import Path
import nibabel
from segresmamba.inference.ome_zarr import ProbabilityWriter
from segresmamba.inference.predict import PredictRequest, predict_cases
def die(_, path=None):
    if path is not None:
        path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
run, images, out, where = sys.argv[1:]
owner = ProbabilityWriter if where == "finish" else nibabel.Nifti1Image
setattr(owner, where, die)
predict_cases(PredictRequest((Path(run),), (images,), Path(out), probabilities=True))
"""


@pytest.mark.parametrize("where", ["finish", "to_filename"])
def test_what_a_killed_prediction_left_is_removed_by_the_next_start(
    images: Path, tmp_path: Path, where: str
) -> None:
    run = write_run(tmp_path / "run", model=OWN_NETWORK)
    out = tmp_path / "out"
    command = [sys.executable, "-c", _KILLED, str(run), str(images), str(out), where]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    left = next(out.glob(".part-*"))
    living = left.with_name(left.name.replace(left.name.split("-")[2], str(os.getppid()), 1))
    living.touch()  # as another command writes it now
    found = predict_cases(request(run, images, probabilities=True))
    assert found.written == ("case_0", "case_1")
    assert list(out.glob(".part-*")) == [living]


def test_models_of_different_tasks_are_refused_before_anything_is_written(
    model_run: Path, images: Path, tmp_path: Path
) -> None:
    other = write_run(tmp_path / "run", labels={"background": 0, "liver": 1, "box": 5})
    with pytest.raises(DataError, match="different labels"):
        predict_cases(PredictRequest((model_run, other), (str(images),), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_shares_divide_the_cases_and_each_summary_has_all_that_is_done(
    model_run: Path, images: Path
) -> None:
    shares = [predict_cases(request(model_run, images, share=(n, 2))) for n in range(2)]
    assert [found.written for found in shares] == [("case_0",), ("case_1",)]
    summary = json.loads((images.parent / "out" / "predict.json").read_text())
    assert set(summary["cases"]) == {"case_0", "case_1"}


def test_probabilities_lie_beside_the_label_maps(model_run: Path, images: Path) -> None:
    predict_cases(request(model_run, images, probabilities=True, format="zarr"))
    out = images.parent / "out"
    label = zarr.open_group(out / "case_0.zarr", mode="r")
    probabilities = zarr.open_group(out / "case_0.probabilities.zarr", mode="r")
    assert probabilities["0"].dtype == np.float16
    assert probabilities.attrs["segresmamba"]["channels"] == ["background", "ball", "box"]
    best = np.array([0, 1, 5])[np.asarray(probabilities["0"]).argmax(0)]
    assert (best == np.asarray(label["0"])).mean() > 0.999  # float16 makes a few equal
    kept = load_model(model_run).segment(images / "case_0_0000.nii.gz", probabilities=True)
    whole = LabelMap(kept.image, kept.labels).array
    assert kept.probabilities.shape == (3, *whole.shape)
    assert (np.array([0, 1, 5])[kept.probabilities.argmax(0)] == whole).mean() > 0.999


def test_the_cases_of_a_store_are_segmented_in_the_geometry_of_their_files(
    tiny_store: Path, tmp_path: Path
) -> None:
    from segresmamba.data import open_dataset

    dataset = open_dataset(tiny_store)
    facts = {"channels": dataset.channel_names, "preprocessing": dataset.preprocessing}
    run = write_run(tmp_path / "run", train={"fold": 0}, **facts)
    found = predict_cases(PredictRequest((run,), (str(tiny_store),), tmp_path / "out", split="val"))
    (case,) = dataset.splits[0]["val"]
    assert found.written == (case,)
    raw = tiny_store.parent / "raw" / "imagesTr"
    files = [raw / f"{case}_{channel:04d}.nii.gz" for channel in range(2)]
    label = nib.load(tmp_path / "out" / f"{case}.nii.gz")
    expected = load_model(run).segment(files)
    assert np.array_equal(label.affine, expected.affine)
    assert np.array_equal(np.asarray(label.dataobj), expected.array)


def test_a_store_of_other_voxel_sizes_is_told_both_numbers(
    tiny_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from segresmamba.data import open_dataset

    dataset = open_dataset(tiny_store)
    size = (9.0, 9.0, 9.0)
    seen = dataset.preprocessing.model_copy(update={"trained_mm": (size, size)})
    run = write_run(tmp_path / "run", channels=dataset.channel_names, preprocessing=seen)
    found = predict_cases(PredictRequest((run,), (str(tiny_store),), tmp_path / "out"))
    for case in found.written:
        assert f"{case} has voxels of" in caplog.text
    assert "trained on 9 x 9 x 9 to 9 x 9 x 9 mm" in caplog.text


def test_one_image_goes_to_one_new_file(model_run: Path, images: Path, tmp_path: Path) -> None:
    label = tmp_path / "label.nrrd"
    predict_file(request(model_run, images / "case_0_0000.nii.gz", out=label))
    assert label.exists()
    with pytest.raises(DataError, match="there already"):
        predict_file(request(model_run, images / "case_0_0000.nii.gz", out=label))
    with pytest.raises(DataError, match="2 cases"):
        predict_file(request(model_run, images, out=tmp_path / "other.nii.gz"))
    with pytest.raises(ConfigError, match=r"mha, and other\.nii.*\.mha"):
        predict_file(
            request(
                model_run, images / "case_0_0000.nii.gz", out=tmp_path / "other.nii", format="mha"
            )
        )
    asked = request(model_run, images / "case_0_0000.nii.gz", out=tmp_path / "other.nii")
    predict_file(replace(asked, format="nifti"))
    assert (tmp_path / "other.nii").exists()


def test_label_maps_in_zarr_are_scored_and_shown(model_run: Path, tmp_path: Path) -> None:
    images, lps = tmp_path / "images", np.diag([-1.0, -2.0, 3.0, 1.0])
    images.mkdir()
    nib.Nifti1Image(noise(*SHAPE), lps).to_filename(images / "case_0000.nii.gz")
    nifti, zarrs = tmp_path / "nifti", tmp_path / "zarr"
    predict_cases(request(model_run, images, out=nifti))
    predict_cases(request(model_run, images, out=zarrs, format="zarr", probabilities=True))
    found = evaluate_folders(zarrs, nifti, tmp_path / "scores", scoring=Scoring())
    assert not found.failed
    scores = json.loads((tmp_path / "scores" / "results.json").read_text())["cases"]["case"]
    assert [one["dice"] for one in scores.values()] == [1.0, 1.0]
    image, expected = images / "case_0000.nii.gz", nib.load(nifti / "case.nii.gz")
    shown = ViewRequest([str(image)], label=zarrs / "case.zarr").open().cases[0]
    label = shown.labels["prediction"]()
    np.testing.assert_array_equal(np.asarray(label.dataobj), np.asarray(expected.dataobj))
    np.testing.assert_allclose(label.affine, lps)
    assert shown.grid.difference(Grid(label.shape, label.affine)) is None
    chunk = zarrs / "case.zarr" / "0" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    (zarrs / "other.zarr").mkdir()
    for name in ("case", "other", "absent"):
        with pytest.raises(DataError) as caught:
            list(open_voxels(zarrs / f"{name}.zarr").planes())
        assert f"{name}.zarr" in str(caught.value)


def test_the_energy_of_each_case_says_how_it_was_measured(
    model_run: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The meter takes no two readings within some hundredths of a second, as these cases would need.
    real = CaseMeter.used

    def used(meter: CaseMeter) -> dict[str, Any]:
        time.sleep(0.5)
        return real(meter)

    monkeypatch.setattr(CaseMeter, "used", used)
    predict_cases(request(model_run, images, energy=True))
    cases = json.loads((images.parent / "out" / "predict.json").read_text())["cases"]
    parts = ("cpu_energy_kwh", "gpu_energy_kwh", "ram_energy_kwh")
    for case in cases.values():
        assert case["energy_kwh"] > 0
        assert case["energy_kwh"] == pytest.approx(sum(case[part] for part in parts), abs=1e-8)
        assert re.search(r"processors (measured|estimated).*memory estimated", case["power"])
    assert not [path.name for path in images.parent.rglob("*emissions*")]
