"""A run's held-out cases: really trained for a few steps, then scored."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from segresmamba.data import convert
from segresmamba.engine import train
from segresmamba.errors import DataError, is_passing
from segresmamba.evaluation import Scoring, evaluate_run
from segresmamba.evaluation.measures import METRICS
from segresmamba.evaluation.runs import KeptPredictions
from segresmamba.inference.postprocessing import read_rules
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.weights import read_facts
from tests.conftest import write_nnunet_dataset
from tests.damage import cut
from tests.engine.tiny import tiny_config

HELD_OUT = ["case1", "case2", "case3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store with three held-out cases, and a run that has been trained for a few steps."""
    root = tmp_path_factory.mktemp("evaluated")
    splits = root / "splits.json"
    splits.write_text(json.dumps([{"train": ["case0"], "val": HELD_OUT}]))
    convert(write_nnunet_dataset(root / "raw", cases=4), root / "store", splits=splits)
    settings = ("train.max_steps=8", "train.lr=1e-2", "validation.overlays=1")
    run = Path(train(tiny_config(root / "store", root / "runs", *settings))["folder"])
    return root / "store", run


def test_an_evaluation_has_all_metrics_and_says_what_was_asked_for(
    trained: tuple[Path, Path],
) -> None:
    _, run = trained
    scoring = Scoring(metrics=tuple(METRICS), empty="zero-one", tolerance_mm={"ball": 2.0})
    found = evaluate_run(run, scoring, workers=2)
    content = json.loads(found.results.read_text())
    assert found.results == run / "results.json"
    assert {file.name for file in found.files} == {"results.json", "results.csv", "results.md"}
    assert list(content["cases"]) == HELD_OUT
    assert set(content["cases"]["case1"]["box"]) == set(METRICS)
    assert content["scoring"]["empty"] == "zero-one"
    assert content["scoring"]["tolerance_mm"] == {"ball": 2.0}
    journal = (run / "journal.jsonl").read_text()
    assert "evaluation/dice/ball" in journal
    assert "evaluation/assd_mm/mean" in journal
    assert "results.csv" in journal


def test_the_worst_cases_and_the_median_one_are_drawn(trained: tuple[Path, Path]) -> None:
    _, run = trained
    overlays = run / "overlays"
    overlays.mkdir(exist_ok=True)
    (overlays / "case_of_an_earlier_evaluation.png").touch()
    content = json.loads(evaluate_run(run).results.read_text())
    dice = {
        case_id: sum(one["dice"] for one in case.values())
        for case_id, case in content["cases"].items()
    }
    worst, median, _ = sorted(dice, key=dice.__getitem__)
    assert {path.stem for path in overlays.iterdir()} == {worst, median}


def test_a_damaged_case_is_named_and_the_others_are_scored(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    store, run = (Path(shutil.copytree(one, tmp_path / one.name)) for one in trained)
    config = (run / "config.yaml").read_text().replace(str(trained[0]), str(store))
    (run / "config.yaml").write_text(config)
    cut(next(path for path in (store / "case2" / "0").rglob("c/0/0/0/0")))
    found = evaluate_run(run)
    content = json.loads(found.results.read_text())
    assert list(content["cases"]) == ["case1", "case3"]
    assert list(found.failed) == list(content["failed"]) == ["case2"]
    assert "a stored case is damaged" in found.failed["case2"]
    for case_id in ("case1", "case3"):
        cut(next(path for path in (store / case_id / "0").rglob("c/0/0/0/0")))
    with pytest.raises(DataError, match="no case could be scored; 3 failed"):
        evaluate_run(run)


def test_post_processing_is_decided_on_the_held_out_cases_and_stored_with_the_weights(
    trained: tuple[Path, Path],
) -> None:
    _, run = trained
    before = evaluate_run(run).results.read_text()
    found = evaluate_run(run, decide_postprocessing=True)
    assert found.results.read_text() == before
    content = json.loads((run / "best" / "postprocessing.json").read_text())
    assert content["cases"] == HELD_OUT
    assert tuple(content["reasons"]) == found.notes
    assert len(found.notes) == 3  # all classes together, ball, box
    weights = RunFolder(run).best
    assert len(read_rules(weights, read_facts(weights).step)) == len(content["rules"])


def test_temporary_files_without_room_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    case = cast(Any, SimpleNamespace(prediction_DHW=np.zeros((2, 2, 2), np.uint8)))
    monkeypatch.setattr(np, "savez_compressed", full)
    kept = KeptPredictions(tmp_path / "temporary", originals=False)
    with pytest.raises(DataError, match=r"temporary: No space left.*TMPDIR") as caught:
        kept.keep("case0", case)
    assert is_passing(caught.value)
