"""benchmarks/scan.py runs to its end: a typo must not cost the first minute on a GPU."""

from __future__ import annotations

import csv
import importlib
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scan(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which finds its neighbours in its own folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("scan")


def test_the_steps_of_the_gpu_run_here(scan: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "scan.csv"
    scan.main(["--dry", "--out", str(out)])
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    methods = {row["method"] for row in rows if row["case"] == "selective_scan"}
    assert methods == {"floor", "cpu", "PyTorch"}
    assert {row["method"] for row in rows if row["case"] == "tri_scan"} == {
        "tri_scan", "three scans",
    }  # fmt: skip
    assert all(math.isfinite(float(row["value"])) and float(row["value"]) > 0 for row in rows)


def test_nothing_is_started_when_time_is_up(
    scan: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = scan.Bench("cpu", torch.bfloat16, ["cpu"], lambda run: run() and 1.0, (1.0, 1.0))
    rows = list(scan.comparison_rows(bench, [(1, 8, 256)], 4, deadline_s=0.0))
    assert {row.method for row in rows} == {"copy", "exp2", "floor"}
    assert "out of time before cpu at (1, 8, 256)" in capsys.readouterr().out


def test_a_method_that_needs_too_much_memory_leaves_the_others_their_rows(scan: ModuleType) -> None:
    def milliseconds(run: object) -> float:
        raise torch.OutOfMemoryError

    bench = scan.Bench("cpu", torch.bfloat16, ["cpu"], milliseconds, (1.0, 1.0))
    o = scan.scan_operands(1, 8, 16)
    rows = list(scan.method_rows("PyTorch", lambda: o["u"], o, (1, 8, 16), bench))
    assert [math.isnan(row.value) for row in rows] == [True, True]
