"""Small models as a training leaves them, without the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segresmamba.config import Config
from segresmamba.data import Preprocessing
from segresmamba.storage.run_folder import RunFolder, write_config
from segresmamba.task.classes import Classes
from segresmamba.task.task import build_network
from segresmamba.task.weights import WeightsFacts, save_weights

LABELS = {"background": 0, "ball": 1, "box": 5}
PATCH = [16, 16, 16]
NETWORK = {"name": "unet", "channels": [4, 8]}
# For tests that start processes: none of them has to import MONAI, which takes seconds.
OWN_NETWORK = {"name": "segresmamba", "dims": [8, 8], "d_state": 4}


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    channels: tuple[str, ...] = ("t1",),
    labels: dict[str, int] = LABELS,
    preprocessing: Preprocessing | None = None,
    **sections: Any,
) -> Path:
    """A run's folder with random best weights."""
    settings: dict[str, Any] = {
        "seed": seed,
        "model": sections.pop("model", NETWORK),
        "data": {"store": "/gone", "patch": PATCH, **sections.pop("data", {})},
        "run": {"root": str(folder.parent), "name": folder.name},
        **sections,
    }
    config = Config.model_validate(settings)
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    write_config(config, run.config)
    classes = Classes.from_labels(config, labels)
    network = build_network(config, len(channels), classes.channels)
    with torch.no_grad():
        for value in network.parameters():  # or all voxels would be of one class
            value.mul_(3)
    facts = WeightsFacts(7, 0.5, labels, channels, preprocessing or Preprocessing())
    save_weights(run.best, network.state_dict(), facts)
    return folder


@pytest.fixture(scope="session")
def model_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one channel and three classes."""
    return write_run(tmp_path_factory.mktemp("models") / "first")


@pytest.fixture(scope="session")
def fold_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two such runs of different weights."""
    folder = tmp_path_factory.mktemp("folds")
    for seed in (1, 2):
        write_run(folder / f"fold{seed}", seed=seed)
    return folder


def noise(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """An image without zeros."""
    return np.random.default_rng(seed).uniform(1, 100, shape).astype(np.float32)
