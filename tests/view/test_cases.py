"""What there is to see in a run, a store and files, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from segresmamba.config import read_config
from segresmamba.errors import ConfigError, DataError, UserError
from segresmamba.inference.predict import PredictRequest, predict_cases
from segresmamba.storage.run_folder import write_config
from segresmamba.view.cases import ViewRequest
from tests.view.runs import HELD_OUT


def voxels(image: Any) -> np.ndarray[Any, Any]:
    return np.asarray(image.dataobj)


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


def write_volume(path: Path, shape: tuple[int, ...] = (4, 5, 6), shift: float = 0) -> Path:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[0, 3] = shift
    nib.Nifti1Image(np.ones(shape, np.uint8), affine).to_filename(path)
    return path


def test_the_held_out_cases_of_a_run_come_worst_first(viewed_run: Path) -> None:
    shown = ViewRequest([str(viewed_run)]).open()
    assert sorted(case.name for case in shown.cases) == sorted(HELD_OUT)
    dice = [case.dice for case in shown.cases if case.dice is not None]
    assert dice == sorted(set(dice))
    assert len(dice) == len(HELD_OUT)
    scores = json.loads((viewed_run / "results.json").read_text())["cases"]
    for case in shown.cases:
        values = [score["dice"] for score in scores[case.name].values()]
        assert case.dice == pytest.approx(sum(values) / len(values))
    assert shown.title == "run"
    assert shown.label_names == {1: "ball", 2: "box"}


def test_a_case_that_evaluation_has_not_scored_comes_last(viewed_run: Path, tmp_path: Path) -> None:
    run = copied(viewed_run, tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    unscored = ViewRequest([str(run)]).open().cases[0].name
    results["cases"][unscored] = {"ball": {"dice": None}}
    (run / "results.json").write_text(json.dumps(results))
    last = ViewRequest([str(run)]).open().cases[-1]
    assert (last.name, last.dice) == (unscored, None)


def test_a_run_shows_image_reference_and_the_prediction_that_was_scored(
    viewed_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    case = ViewRequest([str(viewed_run)]).open().cases[0]
    raw = tiny_store.parent / "raw"
    for number, read in enumerate(case.channels.values()):
        original = nib.load(raw / "imagesTr" / f"{case.name}_{number:04d}.nii.gz")
        np.testing.assert_allclose(voxels(read()), voxels(original), rtol=1e-6)
        np.testing.assert_allclose(read().affine, original.affine)
    label = nib.load(raw / "labelsTr" / f"{case.name}.nii.gz")
    np.testing.assert_array_equal(voxels(case.labels["reference"]()), voxels(label))
    store = str(viewed_run.parent / "store")
    predict_cases(PredictRequest((viewed_run,), (store,), tmp_path, split="val"))
    written = nib.load(tmp_path / f"{case.name}.nii.gz")
    found = case.labels["prediction"]()
    np.testing.assert_array_equal(voxels(found), voxels(written))
    np.testing.assert_allclose(found.affine, label.affine)
    assert len(np.unique(voxels(found))) > 1
    np.testing.assert_array_equal(voxels(case.labels["prediction"]()), voxels(found))  # kept


def test_predictions_of_a_folder_need_no_weights(
    viewed_run: Path, tiny_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copied(viewed_run, tmp_path / "run")
    shutil.rmtree(run / "best")
    shutil.copy(tiny_store.parent / "raw" / "labelsTr" / "case1.nii.gz", tmp_path)
    with caplog.at_level(logging.WARNING):
        (case,) = ViewRequest([str(run)], predictions=tmp_path).open().cases
    assert case.name == "case1"
    np.testing.assert_array_equal(
        voxels(case.labels["prediction"]()), voxels(case.labels["reference"]())
    )
    assert "2 cases have no prediction and are left out" in caplog.text


def test_regions_name_the_values_that_they_share(viewed_run: Path, tmp_path: Path) -> None:
    run = copied(viewed_run, tmp_path / "run")
    config = read_config(run / "config.yaml")
    regions = {"whole": (1, 2), "core": (2,)}
    data = config.data.model_copy(update={"regions": regions})
    write_config(config.model_copy(update={"data": data}), run / "config.yaml")
    assert ViewRequest([str(run)]).open().label_names == {1: "whole", 2: "whole + core"}


def test_a_store_shows_all_its_cases_without_predictions(tiny_store: Path) -> None:
    shown = ViewRequest([str(tiny_store)]).open()
    assert [case.name for case in shown.cases] == [f"case{number}" for number in range(5)]
    assert list(shown.cases[0].labels) == ["reference"]
    assert list(shown.cases[0].channels) == ["channel0", "channel1"]


def test_files_are_one_case_with_a_channel_each(tmp_path: Path) -> None:
    first, second = (write_volume(tmp_path / f"t{number}.nii.gz") for number in (1, 2))
    label = write_volume(tmp_path / "label.nii")
    (case,) = ViewRequest([str(first), str(second)], label=label, reference=label).open().cases
    assert list(case.channels) == ["t1.nii.gz", "t2.nii.gz"]
    assert voxels(case.labels["prediction"]()).sum() == 120


def test_files_on_another_grid_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = write_volume(tmp_path / "image.nii.gz")
    label = write_volume(tmp_path / "label.nii.gz", shift=9)
    ViewRequest([str(image)], label=label).open()
    assert "label.nii.gz is on another grid than the image: it lies up to 9 voxels" in caplog.text


def no_results(run: Path) -> None:
    (run / "results.json").unlink()


def broken_results(run: Path) -> None:
    (run / "results.json").write_text('{"cases": [1]}')


def no_weights(run: Path) -> None:
    shutil.rmtree(run / "best")


def store_gone(run: Path) -> None:
    config = read_config(run / "config.yaml")
    data = config.data.model_copy(update={"store": str(run / "gone.zarr")})
    write_config(config.model_copy(update={"data": data}), run / "config.yaml")


def nothing_held_out(run: Path) -> None:
    config = read_config(run / "config.yaml")
    train = config.train.model_copy(update={"fold": None})
    write_config(config.model_copy(update={"train": train}), run / "config.yaml")


@pytest.mark.parametrize(
    ("damage", "remedy"),
    [
        (no_results, "segresmamba evaluate"),
        (broken_results, "segresmamba evaluate"),
        (no_weights, ""),
        (store_gone, ""),
        (nothing_held_out, "segresmamba predict"),
    ],
)
def test_a_run_that_cannot_be_shown_says_why_on_one_screen(
    viewed_run: Path, tmp_path: Path, damage: Any, remedy: str
) -> None:
    run = copied(viewed_run, tmp_path / "run")
    damage(run)
    with pytest.raises(UserError) as caught:
        ViewRequest([str(run)]).open()
    screen = caught.value.screen()
    assert remedy in screen
    assert len(screen.splitlines()) < 10


def test_a_store_that_has_moved_can_be_named(
    viewed_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    run = copied(viewed_run, tmp_path / "run")
    store_gone(run)
    assert ViewRequest([str(run)], store=str(tiny_store)).open().cases


@pytest.mark.parametrize("content", [b"", b"not a volume", b"\x1f\x8b broken"])
def test_what_is_no_volume_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image.nii.gz").write_bytes(content)
    with pytest.raises(DataError) as caught:
        ViewRequest([str(tmp_path / "image.nii.gz")]).open()
    assert caught.value.where == str(tmp_path / "image.nii.gz")


def test_a_folder_without_cases_says_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "case_0000.nii.gz").touch()
    with pytest.raises(DataError) as caught:
        ViewRequest([str(tmp_path)]).open()
    assert caught.value.got == "no DICOM image, but case_0000.nii.gz"
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"model folder has no cases.*segresmamba predict"):
        ViewRequest([str(tmp_path)]).open()


def test_predictions_of_other_cases_are_refused(viewed_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prediction of these cases"):
        ViewRequest([str(viewed_run)], predictions=tmp_path).open()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("run", {"label": Path("label.nii.gz")}),
        ("store", {"store": "other.zarr"}),
        ("files", {"predictions": Path("predictions")}),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    viewed_run: Path, tiny_store: Path, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    image = write_volume(tmp_path / "image.nii.gz")
    target = {"run": viewed_run, "store": tiny_store, "files": image}[kind]
    with pytest.raises(ConfigError, match="does not go with"):
        ViewRequest([str(target)], **options).open()


def test_two_runs_at_once_are_refused(viewed_run: Path) -> None:
    with pytest.raises(ConfigError, match="one run or one store"):
        ViewRequest([str(viewed_run), str(viewed_run)]).open()
