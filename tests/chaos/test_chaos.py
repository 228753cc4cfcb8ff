"""A few of the faults of `make chaos`."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from segresmamba.tracking.energy.ledger import SUMMED, Ledger
from segresmamba.tracking.mlflow.state import UploadState
from tests.chaos import faults
from tests.engine.conftest import _finished, finished_run

__all__ = ["_finished", "finished_run"]


def test_damaged_files_are_noticed_or_harmless(
    finished_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    Ledger(finished_run).update(Ledger(finished_run).claim({}), dict.fromkeys(SUMMED, 0.5))
    UploadState("sqlite:///x", "e", "file:///a").save(finished_run)
    store = Path(shutil.copytree(tiny_store, tmp_path / "store"))
    rows = {row.fault: row for row in faults.damaged_files(finished_run, store, 3)}
    assert len(rows) == 10
    for row in rows.values():
        assert row.injected == 7
        assert row.noticed >= 2  # cut off, or lost
    kept = ("rank-00000.pt", "meta.json", "weights.safetensors", "config.yaml", "a store's shard")
    for name in kept:
        assert rows[f"damaged: {name}"].unnoticed == 0
    assert rows["damaged: emissions.json"].unnoticed == 1  # lost: as if nothing had been measured


def test_failing_requests_change_no_crop(tiny_store: Path) -> None:
    for row in faults.outages(tiny_store, 1):
        assert (row.injected, row.harmless) == (1, 1)


def test_clocks_and_locks_do_not_matter(tmp_path: Path) -> None:
    assert faults.clock_jumps(tmp_path / "clock", 20).harmless == 20
    assert faults.no_locks(tmp_path, 2).unnoticed == 0


@pytest.mark.slow
def test_an_outage_of_mlflow_loses_and_repeats_no_value(tmp_path: Path, database: Path) -> None:
    shutil.copy(database, tmp_path / "mlflow.db")
    assert faults.mlflow_outages(tmp_path, 1).harmless == 1


@pytest.mark.slow
def test_kills_lose_no_step_and_change_no_loss(tiny_store: Path, tmp_path: Path) -> None:
    row = faults.kills(tmp_path / "kills", tiny_store, 2, time.monotonic() + 200)
    assert (row.injected, row.noticed, row.unnoticed) == (2, 2, 0), row
