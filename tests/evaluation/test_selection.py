"""Selection among runs with random weights, over two folds of a real store."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from segresmamba.data import convert
from segresmamba.errors import ConfigError, DataError
from segresmamba.evaluation.candidates import Candidate, find_candidates
from segresmamba.evaluation.runs import HeldOut
from segresmamba.evaluation.selection import Selection, select
from segresmamba.evaluation.selection_files import (
    refuse_used_folder,
    selection_table,
    write_selection,
)
from segresmamba.inference.trained import open_models
from segresmamba.storage.run_folder import RunFolder
from tests.conftest import write_nnunet_dataset
from tests.evaluation.runs import held_out_run
from tests.inference.conftest import write_run

FOLDS = (("case0", "case1"), ("case2", "case3"))
NETWORKS = {"narrow": [4, 8], "wide": [8, 16]}


def quiet(what: str) -> Callable[[int, int], None]:
    return lambda done, total: None


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("selection")
    raw = write_nnunet_dataset(root / "raw", cases=4, size=20, channels=1)
    splits = [{"train": FOLDS[1 - fold], "val": FOLDS[fold]} for fold in (0, 1)]
    (root / "splits.json").write_text(json.dumps(splits))
    convert(raw, root / "store", splits=root / "splits.json")
    return root / "store"


@pytest.fixture(scope="module")
def runs(store: Path) -> Path:
    """Two networks, each over two folds."""
    folder = store.parent / "runs"
    for name, channels in NETWORKS.items():
        for fold in range(len(FOLDS)):
            held_out_run(store, folder / f"{name}-{fold}", channels=channels, fold=fold)
    return folder


@pytest.fixture(scope="module")
def selection(runs: Path) -> Selection:
    return select([runs], progress=quiet)


def mean_dice(selection: Selection, candidate: Candidate) -> float:
    dice = [candidate.mean(case_id, "dice") for case_id in selection.cases]
    return sum(dice) / len(dice)


def test_runs_of_one_network_are_one_candidate_over_its_folds(runs: Path) -> None:
    narrow, wide = find_candidates([runs], 1, quiet)
    assert "channels=[4, 8]" in narrow.name
    assert "channels=[8, 16]" in wide.name
    for one in (narrow, wide):
        assert list(one.folds) == [0, 1]
        assert list(one.cases) == [case_id for fold in FOLDS for case_id in fold]
    scored = json.loads((runs / "wide-1" / "results.json").read_text())["cases"]
    assert list(scored) == list(FOLDS[1])
    assert wide.cases["case2"]["ball"]["dice"] == scored["case2"]["ball"]["dice"]


def test_a_run_is_evaluated_again_only_for_new_weights(runs: Path) -> None:
    find_candidates([runs], 1, quiet)
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/results.json")}
    later = max(before.values()) + 10**9
    os.utime(RunFolder(runs / "wide-0").best, ns=(later, later))
    find_candidates([runs], 1, quiet)
    changed = {path.parent.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"wide-0"}


def test_the_candidate_of_the_highest_dice_wins_and_ensembles_take_part(
    selection: Selection,
) -> None:
    assert len(selection.rows) == 3
    dice = [mean_dice(selection, row.candidate) for row in selection.rows]
    assert dice == sorted(dice, reverse=True)
    for row, mean in zip(selection.rows, dice, strict=True):
        assert row.dice.mean == pytest.approx(mean)
        assert row.behind.mean == pytest.approx(dice[0] - mean)
        assert row.behind.low <= row.behind.mean <= row.behind.high
    (ensemble,) = (row.candidate for row in selection.rows if " + " in row.candidate.name)
    assert len(ensemble.models) == 4
    assert [len(models) for models in ensemble.folds.values()] == [2, 2]
    assert len(selection.decision.reasons) == 3


def test_an_ensemble_averages_what_its_runs_say(runs: Path, selection: Selection) -> None:
    folders = [RunFolder(runs / f"{name}-0") for name in NETWORKS]
    held_out = HeldOut.of_runs(folders)
    assert len(held_out.sliding.networks) == 2
    (ensemble,) = (row.candidate for row in selection.rows if " + " in row.candidate.name)
    singles = [row.candidate for row in selection.rows if " + " not in row.candidate.name]
    assert all(ensemble.cases["case0"] != one.cases["case0"] for one in singles)


def test_the_choice_is_written_with_its_reasons(selection: Selection, tmp_path: Path) -> None:
    out = tmp_path / "new" / "selection"
    model, *files = write_selection(out, selection, "CC0-1.0")
    assert model == out / "model"
    content = json.loads(files[0].read_text())
    assert content["winner"] == selection.winner.name
    assert len(content["candidates"]) == 3
    assert content["candidates"][0]["behind"]["mean"] == 0
    assert content["cases"] == list(selection.cases)
    assert content["scoring"]["empty"] == "challenge"
    shown = files[1].read_text()
    assert sum(line.startswith("|") for line in shown.splitlines()) == 5
    console = Console(width=70)
    with console.capture() as capture:
        console.print(selection_table(selection))
    assert "winner" in capture.get()
    rows = [line.split("│")[1:-1] for line in capture.get().splitlines() if "│" in line]
    whole = "".join(row[0].strip() for row in rows).replace(" ", "")
    assert whole == "".join(row.candidate.name for row in selection.rows).replace(" ", "")
    assert "ahead of" in selection.reason


def test_the_winner_is_written_as_a_model_folder_with_its_rules(
    selection: Selection, tmp_path: Path
) -> None:
    write_selection(tmp_path, selection, "CC0-1.0")
    models = open_models(tmp_path / "model")
    assert len(models) == len(selection.winner.models)
    assert {model.postprocessing for model in models} == {selection.decision.rules}
    with pytest.raises(ConfigError, match="in use"):
        refuse_used_folder(tmp_path)


def test_a_selection_is_not_written_into_a_run(runs: Path) -> None:
    run = next(runs.glob("*/config.yaml")).parent
    with pytest.raises(ConfigError, match="something else"):
        refuse_used_folder(run)


def test_without_ensembles_only_the_candidates_are_compared(runs: Path) -> None:
    chosen = select([runs / "wide-0"], ensembles=False, progress=quiet)
    assert [len(row.candidate.models) for row in chosen.rows] == [1]
    assert chosen.cases == FOLDS[0]
    assert "only candidate" in chosen.reason


def test_candidates_that_held_different_cases_out_cannot_be_compared(runs: Path) -> None:
    with pytest.raises(DataError, match="no held-out case in common"):
        select([runs / "narrow-0", runs / "wide-1"], ensembles=True, progress=quiet)
    with pytest.raises(DataError, match="held different cases out"):
        HeldOut.of_runs([RunFolder(runs / "narrow-0"), RunFolder(runs / "wide-1")])


def test_a_run_that_held_nothing_out_is_no_candidate(store: Path, tmp_path: Path) -> None:
    folder = held_out_run(store, tmp_path / "all", fold=None)
    with pytest.raises(ConfigError, match=r"config\.yaml: train\.fold: none"):
        select([folder], progress=quiet)


def test_candidates_for_other_classes_are_refused(runs: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", channels=("channel0",))
    with pytest.raises(DataError, match="different labels"):
        select([runs, other], progress=quiet)


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no trained model"):
        select([tmp_path], progress=quiet)


def test_a_case_that_one_candidate_lacks_is_left_out(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = tmp_path / "some"
    for name in ("narrow-0", "narrow-1", "wide-1"):
        shutil.copytree(runs / name, some / name)
    with caplog.at_level("WARNING"):
        chosen = select([some], ensembles=False, progress=quiet)
    assert chosen.cases == FOLDS[1]
    assert "2 of its cases are not compared" in caplog.text
