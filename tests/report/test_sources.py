from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from segresmamba.config import TrackingConfig
from segresmamba.report.sources import ReportError, find_baseline, find_runs
from segresmamba.tracking import SUMMARY, TrackingError, sync
from segresmamba.tracking.mlflow.state import open_state
from tests.report.recorded import record_run


def no_mlflow() -> str:
    raise AssertionError("folders need no MLflow")


def names(targets: list[Path], tmp_path: Path) -> list[str]:
    return [run.history.name for run in find_runs(list(map(str, targets)), no_mlflow, tmp_path)]


def test_runs_and_folders_of_runs_are_read_each_run_once(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    one, _ = record_run(root, "one"), record_run(root, "two")
    (root / "mlartifacts").mkdir()
    assert names([one], tmp_path) == ["one"]
    assert names([root, one, root / "two"], tmp_path) == ["one", "two"]


def test_a_run_that_cannot_be_read_does_not_keep_those_beside_it_from_a_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that was full when a run began leaves an empty journal."""
    root = tmp_path / "runs"
    (root / "empty").mkdir(parents=True)
    (root / "empty" / "journal.jsonl").touch()
    for target in (root, root / "empty"):
        with pytest.raises(TrackingError, match="this is not a journal"):
            names([target], tmp_path)
    record_run(root, "one")
    assert names([root], tmp_path) == ["one"]
    assert f"{root}/empty/journal.jsonl" in caplog.text


def test_a_sweep_stands_for_its_runs(tmp_path: Path) -> None:
    """Its folder looks like a run: it has the journal of what the runs come to together."""
    root = tmp_path / "runs"
    sweep = record_run(root / "sweeps", "s")
    trials = [{"run": f"elsewhere/runs/s-{number}"} for number in range(3)]
    (sweep / "manifest.json").write_text(json.dumps({"trials": trials}))
    with pytest.raises(ReportError, match="no run of the sweep has begun"):
        names([sweep], tmp_path)
    record_run(root, "s-0"), record_run(root, "s-2"), record_run(root, "other")
    assert names([sweep], tmp_path) == ["s-0", "s-2"]
    assert names([root / "sweeps"], tmp_path) == ["s-0", "s-2"]
    (sweep / "manifest.json").write_text("{}")
    with pytest.raises(ReportError, match=r"cannot be read.*KeyError"):
        names([sweep], tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path, tmp_path / "file"):
        with pytest.raises(TrackingError, match="neither a run nor a folder of runs"):
            names([target], tmp_path)


def test_an_experiment_is_read_from_mlflow_and_an_unknown_one_refused_with_those_there_are(
    tmp_path: Path, database: Path
) -> None:
    shutil.copy(database, tmp_path)
    folder = record_run(tmp_path / "runs", "one", cases={"a": 0.9})
    open_state(folder, TrackingConfig(experiment="mine"), tmp_path).save(folder)
    sync(folder)
    means = record_run(tmp_path / "runs/sweeps", "s", tags={SUMMARY: "s"})
    open_state(means, TrackingConfig(experiment="mine"), tmp_path).save(means)
    sync(means)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    found = find_runs(["mine", str(folder)], lambda: uri, tmp_path / "downloads")
    assert [run.history.name for run in found] == ["one"]
    assert found[0].dice == pytest.approx(0.9)
    with pytest.raises(ReportError, match="neither a folder nor an MLflow experiment") as error:
        find_runs(["yours"], lambda: uri, tmp_path / "more")
    assert "mine" in error.value.remedy
    with pytest.raises(ReportError, match="no runs of segresmamba"):
        find_runs(["Default"], lambda: uri, tmp_path / "more")


def test_without_a_folder_or_a_database_both_are_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="there is no folder nowhere") as error:
        find_runs(["nowhere"], lambda: f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    assert "mlflow.db" in error.value.where
    assert list(tmp_path.iterdir()) == []


def test_the_baseline_is_a_run_of_the_report_or_any_other_folder(tmp_path: Path) -> None:
    record_run(tmp_path / "runs", "one")
    other = record_run(tmp_path / "others", "one")
    runs = find_runs([str(tmp_path / "runs")], no_mlflow, tmp_path)
    assert find_baseline("one", runs) is runs[0]
    assert find_baseline(str(other), runs).history.where == str(other)
    with pytest.raises(ReportError, match="no run") as error:
        find_baseline("three", runs)
    assert "one" in error.value.remedy
    runs = find_runs([str(tmp_path / "runs"), str(other)], no_mlflow, tmp_path)
    with pytest.raises(ReportError, match="more than one run"):
        find_baseline("one", runs)
