from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from segresmamba.tracking import peak_memory

REPORT = "from segresmamba.tracking import status_kib; print(status_kib('VmHWM') / (1 << 20))"


def test_the_peak_stays_after_memory_is_given_back() -> None:
    code = (
        "import torch\n"
        "from segresmamba.tracking import peak_memory\n"
        "before = peak_memory()['memory/host_peak_gib']\n"
        "block = torch.ones(1 << 28, dtype=torch.uint8)\n"  # a quarter GiB
        "del block\n"
        "print(peak_memory()['memory/host_peak_gib'] - before)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(child.stdout) == pytest.approx(0.25, abs=0.05)


def test_a_process_does_not_count_its_parents_memory() -> None:
    block = np.ones(1 << 26)  # half a GiB
    child = subprocess.run(
        [sys.executable, "-c", REPORT], capture_output=True, text=True, check=True
    )
    assert 0 < float(child.stdout) < 0.4
    assert block.any()


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="another test has used the device")
def test_of_a_device_that_is_not_used_nothing_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert list(peak_memory()) == ["memory/host_peak_gib", "memory/shared_gib"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no device")
def test_a_device_reports_what_tensors_took_and_what_was_held() -> None:
    block = torch.ones(1 << 28, dtype=torch.uint8, device="cuda")  # a quarter GiB
    gauges = peak_memory()
    allocated = gauges["memory/device_peak_allocated_gib"]
    assert allocated >= 0.25
    assert gauges["memory/device_peak_reserved_gib"] >= allocated
    del block
