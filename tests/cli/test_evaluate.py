from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segresmamba.data import convert
from tests.cli.test_main import run
from tests.conftest import write_nnunet_dataset
from tests.data.raw import write_nifti
from tests.evaluation.runs import held_out_run


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Predictions that are right, and their labels, in the working folder."""
    monkeypatch.chdir(tmp_path)
    label = np.zeros((16, 16, 16), np.uint8)
    label[3:9, 3:9, 3:9], label[11:14, 11:14, 11:14] = 1, 2
    for name in ("predictions", "labels"):
        (tmp_path / name).mkdir()
        for case in ("a", "b"):
            write_nifti(tmp_path / name / f"{case}.nii.gz", label)
    return Path("predictions"), Path("labels")


def test_two_folders_are_scored_into_a_table_and_files(
    monkeypatch: pytest.MonkeyPatch,
    folders: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--metrics", "lesions,nsd", "--labels", "ball=1,box=2", "--tolerance-mm", "ball=3,2"]
    assert run(monkeypatch, "evaluate", *folders, *words, "--empty", "nan", "--workers", 1) == 0
    out = capsys.readouterr().out
    assert "ball" in out
    assert "written:" in out
    content = json.loads(Path("evaluation/results.json").read_text())
    assert content["mean"]["lesion_f1"] == 1
    assert content["mean"]["dice"] == 1
    assert content["scoring"]["other_tolerance_mm"] == 2
    assert content["scoring"]["tolerance_mm"] == {"ball": 3}
    assert content["scoring"]["empty"] == "nan"
    assert "iou" not in content["mean"]


def test_a_bad_case_ends_with_its_name_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch,
    folders: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folders[0] / "b.nii.gz").write_bytes(b"")
    assert run(monkeypatch, "evaluate", *folders, "--workers", 1, "--out", "here") == 1
    assert "not scored: b: a file is truncated or damaged" in capsys.readouterr().err
    assert list(json.loads(Path("here/results.json").read_text())["cases"]) == ["a"]


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["--metrics", "dize"], "--metrics"),
        (["--tolerance-mm", "liver=x"], "--tolerance-mm"),
        (["--tolerance-mm", "-1"], "--tolerance-mm"),
        (["--tolerance-mm", "nan"], "--tolerance-mm"),
        (["--tolerance-mm", "lung=2"], "--tolerance-mm"),
        (["--empty", "zero"], "--empty"),
        (["--labels", "a"], "--labels"),
        (["--labels", "a=1"], "predictions"),
        (["--decide-postprocessing"], "--decide-postprocessing"),
    ],
)
def test_a_mistake_is_one_screen_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch,
    folders: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    where: str,
) -> None:
    assert run(monkeypatch, "evaluate", *folders, *words, "--workers", 1) == 2
    screen = capsys.readouterr().err
    assert screen.startswith("error: ")
    assert where in screen
    assert len(screen.splitlines()) < 24
    assert not Path("evaluation").exists()


@pytest.mark.parametrize("option", ["--labels", "--images", "--out"])
def test_options_for_folders_are_refused_for_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert run(monkeypatch, "evaluate", "runs/first", option, "x") == 2
    assert option in capsys.readouterr().err


def test_select_without_runs_is_one_screen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "select", "nowhere") == 2
    screen = capsys.readouterr().err
    assert screen.startswith("error: ")
    assert "nowhere" in screen
    assert not list(tmp_path.iterdir())


def test_the_chosen_model_predicts_and_its_predictions_score_as_the_run_did(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = write_nnunet_dataset(tmp_path / "raw", cases=3, size=20, channels=1)
    convert(raw, tmp_path / "store")
    one = held_out_run(tmp_path / "store", tmp_path / "runs" / "one", fold=0)
    assert run(monkeypatch, "select", one, "--out", tmp_path / "chosen") == 0
    assert "only candidate" in capsys.readouterr().out
    assert run(monkeypatch, "select", one, "--out", tmp_path / "chosen") == 2
    images, predictions = raw / "imagesTr", tmp_path / "predictions"
    assert run(monkeypatch, "predict", one, images, predictions) == 0
    scores = tmp_path / "scores"
    words = ["--out", scores, "--workers", 1]
    assert run(monkeypatch, "evaluate", predictions, raw / "labelsTr", *words) == 0
    content = json.loads((scores / "results.json").read_text())
    of_run = json.loads((one / "results.json").read_text())
    assert content["members"] == of_run["members"]
    for case_id, case in of_run["cases"].items():
        for name, values in case.items():
            found = content["cases"][case_id][name]
            assert {key: found[key] for key in values} == pytest.approx(values)
    assert run(monkeypatch, "predict", tmp_path / "chosen" / "model", images, tmp_path / "two") == 0
    assert len(list((tmp_path / "two").glob("*.nii.gz"))) == 3
