"""What earlier versions left behind still finds its code.

The pickles were written by the version before the modules moved.
"""

from __future__ import annotations

import pickle
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import pytest

from launch.convert_job import ConvertJob
from launch.in_allocation import on_failure, preflight
from launch.jobs.train_job import TrainJob
from launch.sweeps.trial_job import TrialJob
from segresmamba.config import load_config

HERE = Path(__file__).parent


def load(name: str) -> Any:
    return pickle.loads((HERE / f"{name}.pkl").read_bytes())


def test_a_queued_training_is_read() -> None:
    job = load("train")
    assert isinstance(job, TrainJob)
    assert (job.config.run.name, job.config.train.lr) == ("old", 3e-3)
    assert job.config.model.model_dump()["dims"] == (8, 8)


def test_a_queued_trial_is_read() -> None:
    assert load("trial") == TrialJob(Path("runs/sweeps/old"), 3)


def test_a_queued_conversion_is_read() -> None:
    job = load("convert")
    assert isinstance(job, ConvertJob)
    assert (job.shares, job.share, job.workers) == (4, 2, 1)
    assert (job.request.source, job.request.out) == (Path("raw"), Path("store.zarr"))
    assert (job.request.policy.spacing, job.request.policy.intensity) == ("median", ("ct",))


@pytest.mark.parametrize(
    ("former", "module"), [("launch.preflight", preflight), ("launch.aftermath", on_failure)]
)
def test_a_queued_batch_script_runs_the_same_program(
    former: str, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr(module, "main", lambda: called.append(former))
    monkeypatch.delitem(sys.modules, former, raising=False)
    runpy.run_module(former, run_name="__main__")
    assert called == [former]


def test_a_queued_mlflow_server_finds_its_port() -> None:
    from launch import ports, rendezvous

    assert rendezvous.free_port is ports.free_port


def test_a_saved_mlflow_model_finds_its_loader() -> None:
    from segresmamba.engine import served
    from segresmamba.inference import model

    assert served._load_pyfunc is model._load_pyfunc


def test_a_users_script_finds_start_and_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    from launch import allocation, launcher
    from launch.slurm import allocation as moved

    place = Mock(**{"start.return_value": 7})
    monkeypatch.setattr(launcher, "backend_for", lambda config: place)
    monkeypatch.setattr(launcher, "Slurm", lambda: place)
    job = TrainJob(load_config())
    assert launcher.start(job, watch=True) == 7
    launcher.run_in_allocation(job)
    assert place.mock_calls == [call.start(job, follow=True), call.run_in_allocation(job)]
    assert allocation.overrides is moved.overrides
