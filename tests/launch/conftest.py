"""What the launch tests share: jobs with a stand-in engine, and their ranks' processes."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.jobs.train_job import TrainJob
from segresmamba.config import load_config

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ranks import the stand-in engines."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., TrainJob]:
    """A function of the behaviour (see `engines`) and more overrides."""

    def make(behaviour: str, *overrides: str) -> TrainJob:
        words = [f"run.root={tmp_path}", f"run.name={behaviour}", *overrides]
        return TrainJob(load_config(words), engine="tests.launch.engines")

    return make


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands take runs that could not be trained, such as of a store that is not there."""
    monkeypatch.setattr("launch.__main__.require_trainable", lambda runs: None)


@pytest.fixture
def real_overrides(tmp_path: Path, tiny_store: Path) -> list[str]:
    """Real training, as small as can be: of a network that needs neither MONAI nor numba."""
    words = ["data=custom", f"data.store={tiny_store}", "data.patch=[32,32,32]", "data.workers=0"]
    words += ["model=segresmamba_nomamba", "model.dims=[8,8]"]
    words += ["train.warmup_steps=0", "tracking=none"]
    words += ["train.precision=fp32", "train.threads=1", "train.log_every=1", "augment=none"]
    return [*words, "validation.overlap=0", "validation.overlays=0", f"run.root={tmp_path}"]


def wait_for_file(path: Path) -> str:
    """The content of a file that another process is about to write."""
    deadline = time.monotonic() + 200  # the machine may be busy
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)
    return path.read_text()


def is_running(pid: int) -> bool:
    """Whether a process is alive, zombies excepted."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.fixture
def fake_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """A function of name and shell body that puts a command first on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(name: str, body: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)

    return make
