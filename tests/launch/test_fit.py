"""The plan before a submission; the planner itself is a stand-in, except in the last test."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from launch.fit import require_fit
from segresmamba.config import Config, load_config
from segresmamba.errors import LaunchError

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


def test_a_real_plan_of_a_store_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="cannot be predicted") as caught:
        require_fit(config(f"data.store={tmp_path}/none.zarr"))
    assert "none.zarr" in str(caught.value.got)
