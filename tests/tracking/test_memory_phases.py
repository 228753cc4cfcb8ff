from __future__ import annotations

import subprocess
import sys

import pytest

from segresmamba.tracking import memory_metrics

PHASES = """
import torch
from segresmamba.tracking import PhaseMemory
memory = PhaseMemory()
memory.enter("train")
first = torch.ones(1 << 28, dtype=torch.uint8)  # a quarter GiB
with memory.during("validate"):
    more = torch.ones(1 << 29, dtype=torch.uint8)  # half a GiB
    del more
with memory.during("save"):
    pass
assert memory.phase == "train"
with memory.during("validate"):
    pass
peaks = memory.peaks()
print(*(peaks[phase]["host_peak_gib"] for phase in ("load", "train", "validate", "save")))
"""


def test_each_phase_has_a_peak_of_its_own_and_keeps_the_highest() -> None:
    child = subprocess.run(
        [sys.executable, "-c", PHASES], capture_output=True, text=True, check=True
    )
    load, train, validate, save = map(float, child.stdout.split())
    assert train - load == pytest.approx(0.25, abs=0.05)
    assert validate - load == pytest.approx(0.75, abs=0.05)
    assert save == pytest.approx(train, abs=0.05)


def test_ranks_are_summed_up_by_their_highest_and_their_mean() -> None:
    ranks = [
        {"train": {"host_peak_gib": 1.0}, "validate": {"host_peak_gib": 5.0}},
        {"train": {"host_peak_gib": 3.0}, "validate": {"host_peak_gib": 4.0}},
    ]
    assert memory_metrics(ranks) == {
        "memory/train/host_peak_gib/max": 3.0,
        "memory/train/host_peak_gib/mean": 2.0,
        "memory/validate/host_peak_gib/max": 5.0,
        "memory/validate/host_peak_gib/mean": 4.5,
        "memory/host_peak_gib": 5.0,
    }
