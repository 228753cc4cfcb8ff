"""Two folders of label files, from the files to the results."""

from __future__ import annotations

import csv
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segresmamba.errors import ConfigError, DataError
from segresmamba.evaluation import Evaluation, Scoring, evaluate_folders
from segresmamba.evaluation.metrics import score
from segresmamba.evaluation.structures import structures_from_text
from tests.data.raw import AFFINE, write_nifti

SPACING_XYZ = (1.0, 1.5, 2.0)  # of AFFINE's columns
Labels = NDArray[np.uint8]


def label(seed: int, shift: int = 0) -> Labels:
    """A box of value 1 with a box of value 2 inside."""
    start = 3 + seed
    volume = np.zeros((20, 18, 16), np.uint8)
    volume[start : start + 7, 4:11, 4 + shift : 11 + shift] = 1
    volume[start + 1 : start + 4, 5:9, 6 + shift : 9 + shift] = 2
    return volume


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions of three cases, of growing error, and their labels."""
    predictions, labels = tmp_path / "predictions", tmp_path / "labelsTs"
    for folder in (predictions, labels):
        folder.mkdir()
    for number in range(3):
        write_nifti(labels / f"case{number}.nii.gz", label(number))
        write_nifti(predictions / f"case{number}.nii.gz", label(number, shift=number))
    return predictions, labels


def evaluate(folders: tuple[Path, Path], **options: Any) -> tuple[Evaluation, dict[str, Any]]:
    out = folders[0].parent / "out"
    found = evaluate_folders(*folders, out, **{"scoring": Scoring(), **options})
    return found, json.loads(found.results.read_text())


@pytest.mark.parametrize("workers", [1, 2])
def test_every_case_is_scored_in_its_own_geometry(folders: tuple[Path, Path], workers: int) -> None:
    done: list[tuple[int, int]] = []
    structures = structures_from_text("shell=1,core=2,whole=1+2")
    found, content = evaluate(
        folders,
        structures=structures,
        workers=workers,
        progress=lambda *counts: done.append(counts),
    )
    assert not found.failed
    assert list(content["cases"]) == ["case0", "case1", "case2"]
    expected = score(label(2, shift=2), label(2), structures.members or {}, SPACING_XYZ)
    for name, one in expected.items():
        case = content["cases"]["case2"][name]
        assert case["dice"] == pytest.approx(one.dice)
        assert case["hd95_mm"] == pytest.approx(one.hd95_mm)
        assert case["reference_ml"] == pytest.approx(one.reference_ml)
    assert content["cases"]["case0"]["whole"]["nsd"] == 1
    assert done == [(1, 3), (2, 3), (3, 3)]
    with found.files[1].open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 9


def test_classes_come_from_a_dataset_json_beside_the_labels(folders: tuple[Path, Path]) -> None:
    described = {"labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}}
    (folders[1].parent / "dataset.json").write_text(json.dumps(described))
    unknown = label(0)
    unknown[:6] = 3
    write_nifti(folders[1] / "case0.nii.gz", unknown)
    _, content = evaluate(folders)
    assert content["members"] == {"whole": [1, 2], "core": [2]}
    assert content["cases"]["case0"]["whole"]["dice"] == 1


def test_without_a_declaration_every_value_that_occurs_is_a_class(
    folders: tuple[Path, Path],
) -> None:
    only_here = label(0)
    only_here[0, 0, 0] = 44
    write_nifti(folders[0] / "case0.nii.gz", only_here)
    _, content = evaluate(folders)
    assert list(content["members"]) == ["label 1", "label 2", "label 44"]
    assert content["cases"]["case0"]["label 44"]["dice"] == 0
    assert content["cases"]["case1"]["label 44"]["dice"] == 1
    _, content = evaluate(folders, scoring=Scoring(empty="nan"))
    assert content["cases"]["case1"]["label 44"]["dice"] is None
    assert content["statistics"]["label 44"]["dice"]["undefined"] == 2


def test_endings_in_capitals_are_endings(folders: tuple[Path, Path]) -> None:
    (folders[0] / "case0.nii.gz").rename(folders[0] / "case0.NII.GZ")
    (folders[1] / "case1.nii.gz").rename(folders[1] / "case1.NII.GZ")
    found, content = evaluate(folders)
    assert list(content["cases"]) == ["case0", "case1", "case2"]
    assert not found.failed


def test_bad_cases_are_named_and_the_others_scored(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    predictions, _ = folders
    write_nifti(predictions / "case0.nii.gz", label(0), AFFINE @ np.diag([2, 1, 1, 1]))
    (predictions / "case1.nii.gz").unlink()
    write_nifti(predictions / "unknown.nii.gz", label(0))
    with caplog.at_level(logging.WARNING):
        found, content = evaluate(folders, structures=structures_from_text("a=1,b=2"))
    assert list(content["cases"]) == ["case2"]
    assert list(found.failed) == list(content["failed"]) == ["case0", "case1"]
    assert "different affines" in found.failed["case0"]
    assert str(predictions / "case0.nii.gz") in found.failed["case0"]
    assert "no prediction" in found.failed["case1"]
    assert "without a label, left out: unknown" in caplog.text


def test_pictures_are_drawn_of_the_worst_cases_where_there_are_images(
    folders: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "imagesTs"
    images.mkdir()
    for number in range(2):
        write_nifti(images / f"case{number}_0000.nii.gz", label(number).astype(np.float32) + 1)
    with caplog.at_level(logging.WARNING):
        found, _ = evaluate(folders, images=images)
    assert found.overlays is not None
    assert sorted(path.name for path in found.overlays.iterdir()) == ["case0.png", "case1.png"]
    assert "no image case2_0000" in caplog.text


def empty(folders: tuple[Path, Path]) -> None:
    for path in folders[0].iterdir():
        path.unlink()


def renamed(folders: tuple[Path, Path]) -> None:
    for path in folders[0].iterdir():
        path.rename(path.with_name(f"other_{path.name}"))


def twice(folders: tuple[Path, Path]) -> None:
    write_nifti(folders[1] / "case0.nii", label(0))


def truncated(folders: tuple[Path, Path]) -> None:
    for path in folders[0].iterdir():
        path.write_bytes(path.read_bytes()[:100])


def gone(folders: tuple[Path, Path]) -> None:
    empty(folders)
    folders[0].rmdir()


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (empty, "no label files.*predictions"),
        (renamed, "name of a label.*other_case0.*labelsTs: case0"),
        (twice, r"two files of one case.*labelsTs: case0\.nii, case0\.nii\.gz"),
        (truncated, "no case could be scored; 3 failed.*case0: a file is truncated"),
        (gone, "cannot be listed.*predictions"),
    ],
)
def test_folders_that_give_nothing_are_refused_and_nothing_is_written(
    folders: tuple[Path, Path], damage: Any, match: str
) -> None:
    damage(folders)
    with pytest.raises(DataError, match=match):
        evaluate(folders)
    assert not (folders[0].parent / "out").exists()


def test_scores_are_not_written_over_those_of_a_run(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "journal.jsonl", "results.json"):
        (run / name).touch()
    with pytest.raises(ConfigError, match="something else"):
        evaluate_folders(*folders, run, scoring=Scoring())
    assert (run / "results.json").read_text() == ""


@pytest.mark.parametrize("declared", ["shell=1,core=2", None])
def test_a_tolerance_for_a_class_that_there_is_not_is_refused(
    folders: tuple[Path, Path], declared: str | None
) -> None:
    structures = structures_from_text(declared) if declared else None
    done: list[tuple[int, int]] = []
    with pytest.raises(ConfigError, match="--tolerance-mm: lung"):
        evaluate(
            folders,
            structures=structures,
            scoring=Scoring(tolerance_mm={"lung": 2.0}),
            progress=lambda *count: done.append(count),
        )
    assert not done  # what takes long has not begun


def test_processes_that_score_files_do_not_import_torch() -> None:
    code = "import sys, segresmamba.evaluation.score_pair; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
