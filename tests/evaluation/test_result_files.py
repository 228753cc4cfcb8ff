from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from segresmamba.evaluation.measures import Scoring
from segresmamba.evaluation.result_files import results_table, write_result_files
from segresmamba.evaluation.results import Results

NAN = math.nan


def values(dice: float, hd95_mm: float, prediction_ml: float = 1.0) -> dict[str, float]:
    return {
        "dice": dice,
        "hd95_mm": hd95_mm,
        "reference_ml": 1.0,
        "prediction_ml": prediction_ml,
    }


@pytest.fixture
def results() -> Results:
    """Two cases with two classes, and a third that could not be read."""
    return Results(
        Scoring(metrics=("dice", "hd95_mm", "reference_ml", "prediction_ml"), empty="nan"),
        {"ball": (1,), "a|box": (2, 3)},
        {
            "first": {"ball": values(0.8, 1.0), "a|box": values(0.6, 3.0)},
            "second": {"ball": values(0.9, 2.0), "a|box": values(0.0, NAN, prediction_ml=0.0)},
        },
        {"third": "a file is truncated or damaged [third.nii.gz: EOFError]"},
    )


def test_json_has_the_means_the_cases_and_what_was_asked_for(
    results: Results, tmp_path: Path
) -> None:
    path, *others = write_result_files(
        tmp_path / "results.json", results, {"checkpoint": "best/weights.pt"}
    )
    content = json.loads(path.read_text())
    assert content["checkpoint"] == "best/weights.pt"
    assert content["mean"]["dice"] == pytest.approx(0.575)
    assert content["mean"]["one_sided"] == 1
    assert content["classes"]["a|box"]["dice"] == pytest.approx(0.3)
    assert content["classes"]["a|box"]["one_sided"] == 1
    assert content["cases"]["first"]["ball"] == values(0.8, 1.0)
    assert content["cases"]["second"]["a|box"]["hd95_mm"] is None
    assert content["statistics"]["a|box"]["hd95_mm"]["undefined"] == 1
    low, high = (content["statistics"]["ball"]["dice"][end] for end in ("low", "high"))
    assert 0.8 <= low < 0.85 < high <= 0.9
    assert content["scoring"]["empty"] == "nan"
    assert content["members"] == {"ball": [1], "a|box": [2, 3]}
    assert list(content["failed"]) == ["third"]
    assert [other.name for other in others] == ["results.csv", "results.md"]
    assert len(list(tmp_path.iterdir())) == 3


def test_csv_has_a_line_for_each_case_and_class(results: Results, tmp_path: Path) -> None:
    _, path, _ = write_result_files(tmp_path / "results.json", results, {})
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["case"], line["class"]) for line in lines] == [
        ("first", "ball"), ("first", "a|box"), ("second", "ball"), ("second", "a|box"),
    ]  # fmt: skip
    assert float(lines[0]["dice"]) == 0.8
    assert lines[3]["hd95_mm"] == ""


def test_markdown_has_a_table_the_failures_and_the_definitions(
    results: Results, tmp_path: Path
) -> None:
    *_, path = write_result_files(tmp_path / "results.json", results, {"checkpoint": "w.pt"})
    text = path.read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| ball", r"| a\|box", "| mean"]
    assert "(1 left out)" in rows[3]
    assert "third" in text
    assert "convention `nan`" in text
    assert "95th percentile Hausdorff distance" in text


def test_markdown_says_what_the_numbers_depend_on(tmp_path: Path) -> None:
    metrics = ("dice", "hd95_mm", "nsd", "lesion_f1", "reference_ml", "prediction_ml")
    scoring = Scoring(metrics=metrics, tolerance_mm={"ball": 2.5}, lesion_minimum_mm3=7)
    case = {"ball": dict.fromkeys(metrics, 1.0)}
    *_, path = write_result_files(
        tmp_path / "results.json", Results(scoring, {"ball": (1,)}, {"only": case}), {}
    )
    shown = path.read_text()
    assert "Tolerance of NSD: ball 2.5 mm, others 1 mm." in shown
    assert "dilated by 3 voxels; those up to 7 mm^3" in shown


def test_the_table_shows_means_the_worst_cases_and_what_was_missed(results: Results) -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(results_table(results))
    lines = capture.get().splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert [(row[0], row[-1]) for row in rows] == [
        ("ball", "first (0.800)"),
        ("a|box", "second (0.000)"),
        ("mean", "second (0.450)"),
    ]
    assert rows[0][1].startswith("0.850 [")
    assert rows[1][2].startswith("3.00")
    assert "a class was missed or invented in 1 comparisons" in " ".join(capture.get().split())


def test_a_narrow_table_shows_names_whole_and_as_they_are(results: Results) -> None:
    names = [f"lobe_of_the_lung_upper_{side}[/core]" for side in ("left", "right")]
    case_id = "sub-01_ses-01_acq-highres_[run]_0001"
    one = values(0.5, 1.0) | {"nsd": 0.5, "assd_mm": 1.0}
    scoring = Scoring(metrics=tuple(one))
    several = Results(scoring, dict.fromkeys(names, (1,)), {case_id: dict.fromkeys(names, one)})
    console = Console(width=60)
    with console.capture() as capture:
        console.print(results_table(several))
    rows = [line.split("│")[1:-1] for line in capture.get().splitlines() if "│" in line]
    first, last = ("".join(row[column].strip() for row in rows) for column in (0, -1))
    assert first == "".join(names) + "mean"
    assert last.replace(" ", "").startswith(f"{case_id}(0.500){case_id}(0.500)")


def test_names_for_a_tracker_are_those_of_the_validation(results: Results) -> None:
    flat = results.flat()
    assert flat["dice/mean"] == pytest.approx(0.575)
    assert flat["hd95_mm/a|box"] == 3.0
    assert all(map(math.isfinite, flat.values()))
