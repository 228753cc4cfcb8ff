"""The plan before a submission; the planner itself is a stand-in, except in the last two tests."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.jobs.memory_check import require_fit
from segresmamba.config import Config, load_config
from segresmamba.errors import LaunchError
from segresmamba.planner import Planner
from segresmamba.task.task import Task

DOES_NOT_FIT = '{"fits": false, "needed": "99.0 of 40 GiB", "verdict": "train.accumulation=2"}\n'


def config(*words: str) -> Config:
    return load_config(["plan.gpu_memory_gib=40", *words])


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.CompletedProcess[str]]:
    """What the planner's process will have done."""
    answers: list[subprocess.CompletedProcess[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: answers.pop())
    return answers


def test_nothing_is_asked_where_the_gpus_are_not_known(
    answer: list[subprocess.CompletedProcess[str]],
) -> None:
    require_fit(load_config([]))  # no answer is there: asking would fail


def test_what_does_not_fit_is_a_warning_with_the_remedy(
    answer: list[subprocess.CompletedProcess[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    answer.append(subprocess.CompletedProcess([], 0, DOES_NOT_FIT, ""))
    require_fit(config())
    shown = capsys.readouterr().err
    assert "99.0 of 40 GiB" in shown
    assert "train.accumulation=2" in shown


def test_strict_refuses_it(answer: list[subprocess.CompletedProcess[str]]) -> None:
    answer.append(subprocess.CompletedProcess([], 0, DOES_NOT_FIT, ""))
    with pytest.raises(LaunchError, match="does not fit") as caught:
        require_fit(config("plan.strict=true"))
    assert "train.accumulation=2" in str(caught.value.remedy)


@pytest.mark.slow
def test_a_command_that_strict_refuses_writes_nothing_and_the_words_it_shows_are_taken(
    tmp_path: Path, tiny_store: Path
) -> None:
    words = [
        "data=custom", f"data.store={tiny_store}", "data.patch=[36,36,36]", "model.dims=[8,8]",
        "train.batch_size=8", "tracking=none", f"run.root={tmp_path / 'runs'}",
    ]  # fmt: skip
    needed = Planner(Task.from_config(load_config(words))).plan(40).asked.needed_gib

    def launch(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "launch", "train", *words, *more]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)

    refused = launch(f"plan.gpu_memory_gib={needed - 1e-4}", "plan.strict=true")
    assert refused.returncode == 2, refused.stderr
    assert "error: a training step does not fit the GPUs" in refused.stderr
    assert not list(tmp_path.iterdir())
    proposed = shlex.split(refused.stderr.partition("with these overrides it does: ")[2])
    assert proposed
    taken = launch("--dry-run", *proposed)
    assert taken.returncode == 0, taken.stderr
    plan = Planner(Task.from_config(load_config([*words, *proposed]))).plan(needed - 1e-4)
    assert plan.fits


def test_a_real_plan_of_a_store_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="cannot be predicted") as caught:
        require_fit(config(f"data.store={tmp_path}/none.zarr"))
    assert "none.zarr" in str(caught.value.got)
