"""Runs with random weights that held cases of a real store out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segresmamba.data import open_dataset
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking.journal import Journal
from tests.inference.conftest import write_run


def held_out_run(
    store: Path, folder: Path, *, channels: Sequence[int] = (4, 8), fold: int | None
) -> Path:
    """A run's folder, as a training would leave it."""
    dataset = open_dataset(store)
    write_run(
        folder,
        seed=0 if fold is None else fold,
        channels=dataset.channel_names,
        labels=dataset.labels,
        preprocessing=dataset.preprocessing,
        data={"store": str(store)},
        model={"name": "unet", "channels": list(channels)},
        train={"fold": fold, "precision": "fp32"},
        validation={"overlays": 0},
        tracking={"enabled": False, "system_metrics": False, "emissions": False},
    )
    Journal(RunFolder(folder).journal, name=folder.name).close()
    return folder
