"""Runs for the viewer's tests, here and in tests/browser."""

from __future__ import annotations

import json
from pathlib import Path

from segresmamba.data import convert, open_dataset
from segresmamba.evaluation import evaluate_run
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking.journal import Journal
from tests.inference.conftest import write_run

HELD_OUT = ("case0", "case1", "case2")


def evaluated_run(folder: Path, raw: Path) -> Path:
    """FOLDER/run, with random weights, really evaluated on `HELD_OUT` of FOLDER/store."""
    splits = folder / "splits.json"
    splits.write_text(json.dumps([{"train": ["case3", "case4"], "val": HELD_OUT}]))
    convert(raw, folder / "store", splits=splits)
    dataset = open_dataset(folder / "store")
    run = write_run(
        folder / "run",
        channels=tuple(dataset.channel_names),
        labels=dict(dataset.labels),
        preprocessing=dataset.preprocessing,
        data={"store": str(folder / "store")},
        validation={"overlap": 0, "overlays": 0},
        tracking={"enabled": False, "system_metrics": False, "emissions": False},
    )
    Journal(RunFolder(run).journal, name="run").close()
    evaluate_run(run)
    return run
