"""`benchmarks/gpu_session.py` with tiny sizes, and without the packages that it must not need."""

from __future__ import annotations

import csv
import importlib
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from segresmamba.config import load_config

ROOT = Path(__file__).parents[1]
STEPS = {
    *("doctor", "gpu_tests", "memory", "train", "launches", "preemption", "bench", "scan"),
    *("inference", "loading", "targets"),
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


# Steps of another session, in a module that its processes import.
STEPS_OF_A_TEST = """
import subprocess
import sys
import time


def hangs(s):
    child = [sys.executable, "-c", "import time; time.sleep(600)"]
    s.write("hangs", "child", "process", subprocess.Popen(child, start_new_session=True).pid)
    time.sleep(600)


def fails(s):
    s.write("fails", "", "half", 0.5)
    raise ValueError


def works(s, word):
    s.write("works", word, "whole", 1.0)
"""


@pytest.fixture
def gpu_session(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which finds its neighbours in its own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_session")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def has_ended(process: int) -> bool:
    """Whether a process is gone, or waits to be seen off by one that is not ours."""
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


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
    preemption = {row["quantity"]: row["value"] for row in rows(written["preemption"])}
    assert (preemption["exit code"], preemption["continued"]) == ("0", "True")
    tests = {row["case"]: row["value"] for row in rows(written["gpu_tests"]) if row["case"]}
    assert tests["test_operator_contract"] == "skipped"
    # Other networks, and the kernels of a GPU, have no part in this.
    absent = [row["case"] for row in rows(written["targets"]) if row["unit"] == "not measured"]
    assert len(absent) == 9, absent
    assert all("over that of" in case or "over triton" in case for case in absent)
    assert "missing  scan backend cpu" in done.stdout  # numba was hidden


def test_a_step_finds_the_package_where_it_is_not_installed(
    gpu_session: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks")])  # as the script's own process
    seen: list[str] = []
    session = gpu_session.Session(tmp_path, tmp_path)
    gpu_session.with_benchmarks(lambda _: seen.extend(sys.path), session, ())
    assert str(ROOT) in seen


@pytest.mark.slow
def test_a_step_that_hangs_is_cut_off_with_all_that_it_has_started(
    gpu_session: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "steps_of_a_test.py").write_text(STEPS_OF_A_TEST)
    monkeypatch.syspath_prepend(str(tmp_path))
    steps = importlib.import_module("steps_of_a_test")
    session = gpu_session.Session(tmp_path, tmp_path, "cuda", "test")
    plan = [(steps.hangs, (), 10), (steps.fails, (), 60), (steps.works, ("after",), 60)]
    failed = gpu_session.run_all(session, plan, limited=True)
    assert failed == ["hangs: cut off after 10 s", "fails: exit code 1"]
    written = {path.name: rows(path)[0] for path in session.files()}
    assert written["gpu_works_test.csv"]["case"] == "after"
    assert written["gpu_fails_test.csv"]["value"] == "0.5"
    assert has_ended(int(written["gpu_hangs_test.csv"]["value"]))


def test_no_step_begins_when_the_twelve_minutes_are_over(
    gpu_session: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_session, "TOTAL_S", 0)
    session = gpu_session.Session(tmp_path, tmp_path, "cuda", "test")
    failed = gpu_session.run_all(session, [(gpu_session.doctor, (), 60)], limited=True)
    assert failed == ["doctor: no time is left"]
    assert session.files() == []


def test_a_session_on_a_gpu_has_valid_settings_and_takes_twelve_minutes(
    gpu_session: ModuleType, tmp_path: Path
) -> None:
    session = gpu_session.Session(tmp_path, tmp_path)
    assert sum(limit_s for *_, limit_s in gpu_session.plan_of(session)) <= gpu_session.TOTAL_S
    for network in session.networks:
        assert load_config([*session.words, f"model={network}"]).train.precision == "bf16"
    for stages, batch in session.planned:
        words = [f"model.checkpoint_stages={stages}", f"train.batch_size={batch}"]
        config = load_config([*session.words, *words])
        assert config.model.model_dump()["checkpoint_stages"] == stages
        assert config.train.batch_size == batch


def test_a_network_leaves_its_memory_to_the_next_one(
    gpu_session: ModuleType, tmp_path: Path
) -> None:
    session = gpu_session.Session.dry(tmp_path, tmp_path)
    gpu_session.make_data(session)
    with gpu_session.training(session) as (made, step):
        step()
        network = weakref.ref(made._engine.network)
    assert step
    assert network() is None


def test_numbers_are_compared_with_the_aims(gpu_session: ModuleType, tmp_path: Path) -> None:
    session = gpu_session.Session(tmp_path, tmp_path, "cuda", "test")
    for network, step_s, gib in (("segresmamba", 0.1, 4.0), ("swinunetr", 0.5, 7.0)):
        session.write("bench", network, "step", step_s, "s")
        session.write("bench", network, "peak memory", gib, "GiB")
    for method, ms in (("mamba_ssm", 2.0), ("triton", 1.0), ("floor", 0.5)):
        session.write("scan", f"selective_scan L 262144 D 96 {method}", "forward", ms, "ms")
    session.write("doctor", "", "text", "4 GPUs")
    gpu_session.compare(session)
    found = {row["case"]: row for row in rows(tmp_path / "gpu_targets_test.csv")}
    verdicts = {case: (float(row["value"]), row["quantity"], row["unit"])
                for case, row in found.items() if row["value"]}  # fmt: skip
    assert verdicts == {
        "peak memory, GB": (4.295, "<= 4.78", "met"),
        "peak memory over that of swinunetr": (0.57143, "<= 0.5", "missed"),
        "step over that of swinunetr": (0.2, "<= 0.8", "met"),
        "mamba-ssm over triton, L 262144 D 96, forward": (2.0, ">= 3", "missed"),
        "floor over triton, L 262144 D 96, forward": (0.5, ">= 0.4", "met"),
    }
    assert found["step over that of segmamba"]["unit"] == "not measured"
