"""`benchmarks/gpu_session.py` with tiny sizes, and without the packages that it must not need."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEPS = {
    *("doctor", "gpu_tests", "memory", "train", "launches", "preemption", "bench", "scan"),
    *("inference", "loading"),
}
# Python runs a module of this name in every process that it starts, and so also in the ranks.
HIDE = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {
    *("mlflow", "pandas", "pyarrow", "numba", "SimpleITK", "codecarbon", "obstore"),
    *("matplotlib", "PIL", "pydicom", "requests"),
}


class Others(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            return None
        return PathFinder.find_spec(name, path, target)


sys.meta_path[:] = [Others if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.mark.slow
def test_every_step_of_the_session_runs_without_the_packages_that_it_must_not_need(
    tmp_path: Path,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_session.py", "--dry", "--out", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    written = {path.name.removeprefix("gpu_").removesuffix("_dry.csv"): path
               for path in tmp_path.glob("gpu_*_dry.csv")}  # fmt: skip
    assert written.keys() == STEPS, done.stdout
    preemption = {row["quantity"]: row["value"] for row in csv.DictReader(
        written["preemption"].read_text().splitlines())}  # fmt: skip
    assert (preemption["exit code"], preemption["continued"]) == ("0", "True")
    assert "missing  scan backend cpu" in done.stdout  # numba was hidden
