from __future__ import annotations

import logging
from pathlib import Path

import pytest

from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking import TrackingError, is_run, read_history
from segresmamba.tracking.journal import Journal
from tests.report.recorded import record_run


def test_a_folder_tells_what_was_recorded(tmp_path: Path) -> None:
    history = read_history(record_run(tmp_path, "one", cases={"a": 0.9}))
    assert (history.name, history.status) == ("one", "finished")
    assert history.settings["train.lr"] == "0.1"
    assert history.tags["device"] == "cpu"
    assert [point.value for point in history.curves["train/loss"]] == [2.0, 1.0, 2 / 3, 0.5]
    assert history.last("train/loss") == 0.5
    assert history.last("train/nothing") is None
    assert history.energy["energy_kwh"] == 0.003
    assert history.power == (
        "processors measured (RAPL), GPUs none, memory estimated from size; "
        "44 g CO2e/kWh in FRA (a table)"
    )
    assert set(history.files) == {"results.json", "overlays/a.png"}


def test_without_a_ledger_the_recorded_totals_count(tmp_path: Path) -> None:
    folder = record_run(tmp_path, "one")
    RunFolder(folder).emissions.unlink()
    assert read_history(folder).energy["energy_kwh"] == 0.003


def test_steps_that_a_resume_trained_again_count_once(tmp_path: Path) -> None:
    folder = record_run(tmp_path, "one", status="preempted")
    journal = Journal(RunFolder(folder).journal, name="one")
    for step in (4, 5):
        journal.append("metrics", step=step, epoch=None, values={"train/loss": 99.0})
    journal.close()
    losses = read_history(folder).curves["train/loss"]
    assert [(point.step, point.value) for point in losses][3:] == [(4, 0.5), (5, 99.0)]


def test_values_of_an_earlier_attempt_are_not_shown(tmp_path: Path) -> None:
    folder = record_run(tmp_path, "one")
    journal = Journal(RunFolder(folder).journal, name="one")
    journal.append("attempt", step=2)
    journal.append("metrics", step=3, epoch=None, values={"train/loss": 99.0})
    journal.close()
    history = read_history(folder)
    assert [(p.step, p.value) for p in history.curves["train/loss"]] == [(1, 2), (2, 1), (3, 99)]
    assert history.last("validation/dice/mean") is None  # it was of step 4


def test_a_run_without_an_end_is_running(tmp_path: Path) -> None:
    assert read_history(record_run(tmp_path, "one", status=None)).status == "running"


def test_a_journal_cut_in_mid_line_is_read_up_to_the_cut_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = RunFolder(record_run(tmp_path, "one", energy_kwh=None)).journal
    content = journal.read_bytes()
    journal.write_bytes(content[:-5])
    with caplog.at_level(logging.WARNING):
        history = read_history(journal.parent)
    assert history.status == "running"  # the end is what was cut
    assert history.last("train/loss") == 0.5
    assert [record for record in caplog.messages if "in the middle of a record" in record] != []
    assert len(caplog.messages) == 1
    assert journal.read_bytes() == content[:-5]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    with pytest.raises(TrackingError, match="no journal"):
        read_history(tmp_path)
    RunFolder(tmp_path).journal.write_text("hello\n")
    with pytest.raises(TrackingError, match="not a journal"):
        read_history(tmp_path)
