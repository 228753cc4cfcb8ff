"""What all tests share: no GPU test without a GPU, and a small real dataset, really converted."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch.nn import functional

# Container images often forbid bytecode. Tests start many Python processes, and without it each
# of them would compile torch and MONAI again, which doubles the time of their import.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Triton's kernels run in its interpreter. It has to know before anything imports it, and
    # DeepSpeed does.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# What Slurm, a terminal and our own launcher send.
STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

LINEAR = functional.linear

# How long an example takes depends on what else the machine does.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_configure() -> None:
    """Let Ctrl-C reach what tests start: a script's background job begins with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _signals_stay() -> Iterator[None]:
    """Let no test change what signals do: what a later test starts would inherit an ignored one."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    after = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        if after[number] != before[number]:
            signal.signal(number, before[number])
    assert after == before


@pytest.fixture(autouse=True)
def _plain_linear() -> None:
    """DeepSpeed's stage 3 replaces PyTorch's linear layer, for the whole process.

    Its own saves other tensors, which the planner's tests count.
    """
    functional.linear = LINEAR


def write_nnunet_dataset(folder: Path, cases: int = 5, size: int = 40, channels: int = 2) -> Path:
    """Bright balls (label 1) and dim boxes (label 2) in noise, as an nnU-Net raw dataset."""
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    affine = np.diag([-1.0, 1.5, 2.0, 1.0])
    affine[:3, 3] = (30, -20, 10)
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"))
    for case in range(cases):
        label = np.zeros((size,) * 3, np.uint8)
        centre = rng.integers(size // 4, 3 * size // 4, 3)
        label[tuple(slice(c - 5, c + 5) for c in centre[::-1])] = 2
        label[((grid - centre[:, None, None, None]) ** 2).sum(0) < 36] = 1
        nib.Nifti1Image(label, affine).to_filename(folder / "labelsTr" / f"case{case}.nii.gz")
        for channel in range(channels):
            image = rng.normal(100, 10, label.shape) + 80 * (label == 1) + 40 * (label == 2)
            path = folder / "imagesTr" / f"case{case}_{channel:04d}.nii.gz"
            nib.Nifti1Image(image.astype(np.float32), affine).to_filename(path)
    manifest = {
        "channel_names": {str(channel): f"channel{channel}" for channel in range(channels)},
        "labels": {"background": 0, "ball": 1, "box": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def uninitialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """New networks keep what lies in memory: the numbers of full-size ones take seconds to draw."""
    for name in ("normal_", "uniform_", "erfinv_"):
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, *_, **__: tensor)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five converted cases of 40^3 voxels, two channels, two classes."""
    from segresmamba.data import convert

    folder = tmp_path_factory.mktemp("tiny")
    convert(write_nnunet_dataset(folder / "raw"), folder / "store")
    return folder / "store"


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with MLflow's tables, which take it seconds to make, and one empty run.

    It is made under the umask of users who share a folder.
    """
    from segresmamba.config import TrackingConfig
    from segresmamba.storage.run_folder import RunFolder
    from segresmamba.tracking import sync
    from segresmamba.tracking.journal import Journal
    from segresmamba.tracking.mlflow.state import open_state

    root = tmp_path_factory.mktemp("database")
    folder = root / "run"
    folder.mkdir()
    Journal(RunFolder(folder).journal, name="run").close()
    open_state(folder, TrackingConfig(experiment="made by the fixture"), root).save(folder)
    before = os.umask(0o002)
    try:
        sync(folder)
    finally:
        os.umask(before)
    return root / "mlflow.db"
