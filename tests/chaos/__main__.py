"""`make chaos MINUTES=10`: every fault in its full number, and the table for the documentation."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from segresmamba.data import convert
from segresmamba.tracking.energy.ledger import SUMMED, Ledger
from segresmamba.tracking.mlflow.state import UploadState
from tests.chaos import faults
from tests.chaos.faults import Row
from tests.chaos.training import train_in_child
from tests.conftest import write_nnunet_dataset

UNCHECKED = {"damaged: emissions.json"}
"""A lost file of energy stays unnoticed: a run without it has measured none."""
HEAD = "| fault | injected | noticed | harmless | unnoticed | lost |\n|---|--:|--:|--:|--:|---|"


def finished_run(folder: Path, store: Path) -> Path:
    """A run with every kind of file."""
    process = train_in_child(store, folder)
    process.join()
    assert process.exitcode == 0
    run = folder / "tiny"
    facts = {"intensity_g_per_kwh": 1.0, "country": "USA"}
    Ledger(run).update(Ledger(run).claim(facts), dict.fromkeys(SUMMED, 0.5))
    UploadState("sqlite:///x", "e", "file:///a").save(run)
    return run


def rows(folder: Path, store: Path, minutes: float) -> Iterator[Row]:
    """All faults; the kills take the time that is given for them."""
    copy = Path(shutil.copytree(store, folder / "damaged-store"))
    yield from faults.damaged_files(finished_run(folder / "finished", store), copy, 50)
    yield from faults.outages(store, 20)
    yield faults.mlflow_outages(new(folder / "mlflow"), 20)
    yield faults.clock_jumps(folder / "clock", 200)
    yield faults.no_locks(folder, 50)
    yield faults.trials_on_sqlite(new(folder / "sqlite"), 20)
    yield faults.second_jobs(folder / "two", store, 10)
    if os.geteuid() == 0:
        yield faults.full_disks(new(folder / "full"), store, [100, 200, 400, 700, 1000, 1500, 2500])
    yield faults.kills(folder / "kills", store, 200, time.monotonic() + 60 * minutes)


def new(folder: Path) -> Path:
    """Make a folder."""
    folder.mkdir()
    return folder


def main() -> None:
    """Print the table; exit code 1 if something went wrong without a word."""
    minutes = float(sys.argv[1])
    today = datetime.now(UTC).date()
    print(f"{today}, {os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}\n")
    print(HEAD, flush=True)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        convert(write_nnunet_dataset(folder / "raw", cases=5), folder / "store")
        for row in rows(folder, folder / "store", minutes):
            print(row, flush=True)
            found.append(row)
    sys.exit(any(row.unnoticed and row.fault not in UNCHECKED for row in found))


if __name__ == "__main__":
    main()
