"""The index beside the runs: it saves reading journals, and never shows what is no longer so."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import run_index
from launch.run_index import INDEX, RunSummary, summaries
from segresmamba.tracking.journal import Journal

HOUR_S = 3600


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose journals were read."""
    folders: list[Path] = []
    read = RunSummary.read

    def count(folder: Path) -> RunSummary | None:
        folders.append(folder)
        return read(folder)

    monkeypatch.setattr(RunSummary, "read", count)
    return folders


@pytest.fixture
def record(tmp_path: Path) -> Callable[[float], Path]:
    """A function that appends a Dice to the journal of a run, an hour ago."""

    def append(dice: float) -> Path:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        journal = Journal(folder / "journal.jsonl", name="run")
        journal.append("metrics", step=1, epoch=None, values={"energy/energy_kwh": 0.002})
        journal.append("metrics", step=9, epoch=None, values={"validation/dice/mean": dice})
        journal.append("status", status="finished")
        journal.close()
        before_s = (folder / "journal.jsonl").stat().st_mtime - HOUR_S
        os.utime(folder / "journal.jsonl", (before_s, before_s))
        return folder

    return append


def test_a_journal_is_read_once_until_it_changes(
    record: Callable[[float], Path], reads: list[Path]
) -> None:
    folder = record(0.5)
    first = summaries([folder])
    assert first == summaries([folder])
    assert reads == [folder]
    assert (first[folder].last("validation/dice/mean"), first[folder].energy_wh) == (0.5, 2.0)
    record(0.25)  # of the same time, but longer
    assert summaries([folder])[folder].last("validation/dice/mean") == 0.25
    assert reads == [folder, folder]
    (folder / "emissions.json").write_text("{")  # the energy comes from there
    assert summaries([folder]) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_does_not_void_the_index(
    record: Callable[[float], Path], reads: list[Path], value: float
) -> None:
    folder = record(value)
    for _ in range(2):
        found = summaries([folder])[folder].last("validation/dice/mean")
        assert str(found) == str(value)
    assert reads == [folder]


def test_a_journal_that_was_just_written_is_not_kept(
    record: Callable[[float], Path], reads: list[Path]
) -> None:
    folder = record(0.5)
    os.utime(folder / "journal.jsonl")
    assert summaries([folder])
    assert not (folder.parent / INDEX).exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"run": {"stamp": [1, 2]}}'])
def test_a_damaged_index_is_made_anew(record: Callable[[float], Path], content: str) -> None:
    folder = record(0.5)
    (folder.parent / INDEX).write_text(content)
    assert summaries([folder, folder.parent / "none"]).keys() == {folder}
    assert json.loads((folder.parent / INDEX).read_text()).keys() == {"run"}


def test_runs_of_somebody_else_are_shown_though_no_index_can_be_written(
    record: Callable[[float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(run_index, "write_text", refuse)
    assert summaries([record(0.5)])
