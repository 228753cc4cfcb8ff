"""Joining a process group, seen from outside."""

from __future__ import annotations

import subprocess
import sys

import pytest

from segresmamba.task.ranks import environment_of_one

_JOINS = """
import os
from segresmamba.engine.distributed import Ranks, from_main, join
before = dict(os.environ)
join(Ranks.from_environment(), threads=1)
assert from_main("alone") == "alone"
print(sorted(set(os.environ.items()) ^ set(before.items())))
"""


def test_a_job_of_one_leaves_the_environment_to_its_children_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = subprocess.run(
        [sys.executable, "-c", _JOINS],
        env=environment_of_one(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_a_job_of_its_own_knows_nothing_of_the_job_that_starts_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    environment = environment_of_one()
    assert environment["OMP_NUM_THREADS"] == "7"
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"} & environment.keys()
