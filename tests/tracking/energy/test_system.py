from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking import read_journal, sync
from segresmamba.tracking.energy.gpus import GpuReader
from segresmamba.tracking.energy.system import SystemSampler, node_journal
from segresmamba.tracking.journal import Journal
from segresmamba.tracking.mlflow.state import UploadState

NODE = "n7"
CPU = f"system/{NODE}/cpu_utilization_percentage"


@pytest.fixture(autouse=True)
def _sample_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segresmamba.tracking.energy.system.SAMPLE_S", 0.02)
    monkeypatch.setenv("SLURMD_NODENAME", NODE)


def steps(folder: Path, node: str = NODE) -> list[int]:
    records = read_journal(node_journal(folder, node))
    return [record.body["step"] for record in records if record.kind == "metrics"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def sample(folder: Path, count: int) -> None:
    """Take at least `count` more samples."""
    path = node_journal(folder, NODE)
    before = len(steps(folder)) if path.exists() else 0
    sampler = SystemSampler(folder)
    sampler.start()
    wait_for(lambda: path.exists() and len(steps(folder)) >= before + count)
    sampler.stop()


def test_processors_memory_disk_and_network_are_sampled(tmp_path: Path) -> None:
    sample(tmp_path, 2)
    values = read_journal(node_journal(tmp_path, NODE))[-1].body["values"]
    for name in (
        "cpu_utilization_percentage",
        "system_memory_usage_megabytes",
        "disk_available_megabytes",
        "network_receive_megabytes",
    ):
        assert values[f"system/{NODE}/{name}"] >= 0
    assert values[f"system/{NODE}/system_memory_usage_megabytes"] > 100


def test_a_run_shorter_than_the_interval_has_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segresmamba.tracking.energy.system.SAMPLE_S", 60.0)
    sampler = SystemSampler(tmp_path)
    sampler.start()
    wait_for(node_journal(tmp_path, NODE).exists)
    sampler.stop()
    assert steps(tmp_path) == [0]


def test_a_resumed_run_continues_the_samples(tmp_path: Path) -> None:
    sample(tmp_path, 2)
    sample(tmp_path, 2)
    found = steps(tmp_path)
    assert found == list(range(len(found)))
    assert len(found) >= 4


SAMPLED_THEN_KILLED = """
import os, pathlib, signal, sys, time
import segresmamba.tracking.energy.system as system
system.SAMPLE_S = 0.02
system.SystemSampler(pathlib.Path(sys.argv[1])).start()
time.sleep(1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_no_sample_and_frees_the_journal(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAMPLED_THEN_KILLED, str(tmp_path)]
    subprocess.run(command, check=False, env={**os.environ, "SLURMD_NODENAME": NODE})
    before = len(steps(tmp_path))
    assert before > 1
    sample(tmp_path, 1)
    assert len(steps(tmp_path)) > before


def test_a_second_sampler_of_a_node_gives_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node_journal(tmp_path, NODE).parent.mkdir()
    held = Journal(node_journal(tmp_path, NODE), name=NODE)
    sampler = SystemSampler(tmp_path)
    sampler.start()
    wait_for(lambda: "not sampled" in caplog.text)
    sampler.stop()
    held.close()


def test_stopping_an_unstarted_sampler_is_no_error(tmp_path: Path) -> None:
    SystemSampler(tmp_path).stop()


def test_without_nvml_gpus_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sampler = SystemSampler(tmp_path, ["GPU-00000000-0000-0000-0000-000000000000"])
    sampler.start()
    wait_for(lambda: node_journal(tmp_path, NODE).exists() and bool(steps(tmp_path)))
    sampler.stop()
    assert "GPUs are not sampled" in caplog.text


def test_a_value_that_a_gpu_does_not_measure_is_left_out_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A vGPU has no power meter, a MIG slice no utilisation, unified memory no size."""
    error = type("NVMLError", (Exception,), {})

    def unsupported(handle: str) -> None:
        raise error("Not Supported")

    def power(handle: str) -> int:
        if handle == "GPU-b":
            unsupported(handle)
        return 250_000

    nvml = SimpleNamespace(
        NVMLError=error,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: unsupported(uuid) if "MIG" in uuid else uuid,
        nvmlDeviceGetUtilizationRates=unsupported,
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=2e9, total=8e9),
        nvmlDeviceGetPowerUsage=power,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    reader = GpuReader(["GPU-a", "GPU-b", "MIG-c"])
    expected = {
        f"gpu_{index}_memory_usage_{unit}": value
        for index in (0, 1)
        for unit, value in (("megabytes", 2000.0), ("percentage", 25.0))
    } | {"gpu_0_power_usage_watts": 250.0}
    assert reader.read() == reader.read() == expected
    assert [record.getMessage() for record in caplog.records] == [
        "GPU 2, MIG-c, is not sampled: Not Supported",
        "GPU 0 does not report its utilisation: Not Supported",
        "GPU 1 does not report its utilisation: Not Supported",
        "GPU 1 does not report its power: Not Supported",
    ]


def history(run: Path, key: str) -> list[int]:
    from mlflow import MlflowClient

    state = UploadState.load(run)
    return [p.step for p in MlflowClient(state.uri).get_metric_history(state.run_id, key)]


def test_the_samples_of_every_node_arrive_once(run: Path, journal: Journal) -> None:
    sample(run, 2)
    other = Journal(node_journal(run, "n8"), name="n8")
    other.append("metrics", step=0, epoch=None, values={"system/n8/cpu": 1.0})
    other.close()
    sync(run)
    sample(run, 2)
    journal.append("status", status="finished")
    sync(run)
    sync(run)
    assert history(run, CPU) == steps(run)
    assert history(run, "system/n8/cpu") == [0]


def test_a_damaged_journal_of_a_node_holds_nothing_up(
    run: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    node_journal(run, NODE).parent.mkdir()
    node_journal(run, NODE).write_text("rubbish\n")
    journal.append("metrics", step=0, epoch=None, values={"loss": 1.0})
    state = sync(run)
    assert state.sent_bytes == RunFolder(run).journal.stat().st_size
    assert "samples of a node are not sent" in caplog.text


@pytest.mark.gpu
def test_the_jobs_gpus_are_sampled(tmp_path: Path) -> None:
    import torch

    from segresmamba.tracking.energy.gpus import gpu_uuid

    if not torch.cuda.is_available():
        pytest.skip("no device")
    uuid = gpu_uuid(torch.device("cuda", 0))
    assert uuid
    sampler = SystemSampler(tmp_path, [uuid])
    sampler.start()
    wait_for(lambda: node_journal(tmp_path, NODE).exists() and bool(steps(tmp_path)))
    sampler.stop()
    values = read_journal(node_journal(tmp_path, NODE))[-1].body["values"]
    assert values[f"system/{NODE}/gpu_0_memory_usage_megabytes"] > 0
    assert 0 <= values[f"system/{NODE}/gpu_0_utilization_percentage"] <= 100
