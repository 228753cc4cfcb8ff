from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from codecarbon.external.scheduler import PeriodicScheduler

from segresmamba.config import TrackingConfig
from segresmamba.errors import ConfigError
from segresmamba.tracking import EmissionsMeter, gpu_uuid
from segresmamba.tracking.energy.gpus import indices_of, job_gpus
from segresmamba.tracking.energy.ledger import Ledger

CONFIG = TrackingConfig(country="FRA")


@pytest.fixture(autouse=True)
def _measure_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segresmamba.tracking.energy.emissions.MEASURE_S", 0.05)
    monkeypatch.setattr("segresmamba.tracking.energy.emissions.MEASURES_PER_WRITE", 1)


def segments(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "emissions.json").read_text())["segments"]
    return found


def measure(folder: Path) -> dict[str, float]:
    meter = EmissionsMeter(folder, CONFIG)
    meter.start()
    time.sleep(0.1)
    meter.stop()
    return meter.totals()


def test_energy_is_measured_and_says_how(tmp_path: Path) -> None:
    totals = measure(tmp_path)
    (segment,) = segments(tmp_path).values()
    parts = ("cpu_energy_kwh", "gpu_energy_kwh", "ram_energy_kwh")
    assert totals["energy_kwh"] > 0
    assert totals["energy_kwh"] == pytest.approx(sum(totals[part] for part in parts))
    assert totals["emissions_kg"] == pytest.approx(
        totals["energy_kwh"] * segment["intensity_g_per_kwh"] / 1000
    )
    assert totals["duration_s"] > 0
    assert segment["country"] == "FRA"
    assert 10 < segment["intensity_g_per_kwh"] < 200
    assert "energy mix of" in segment["intensity_source"]
    assert segment["cpu_power"] in ("measured (RAPL)", "estimated from load")
    assert segment["gpu_power"] == "none" or segment["gpu_power"].startswith("measured")
    assert segment["ram_power"] == "estimated from size"


def test_a_node_may_be_there_before_the_run_folder(tmp_path: Path) -> None:
    assert measure(tmp_path / "runs" / "run")["energy_kwh"] > 0


def test_a_run_that_goes_on_adds_a_segment(tmp_path: Path) -> None:
    first = measure(tmp_path)
    both = measure(tmp_path)
    energies = [segment["energy_kwh"] for segment in segments(tmp_path).values()]
    assert len(energies) == 2
    assert energies[0] == first["energy_kwh"]
    assert both["energy_kwh"] == sum(energies)


def test_totals_are_of_now_while_measuring(tmp_path: Path) -> None:
    meter = EmissionsMeter(tmp_path, CONFIG)
    meter.start()
    before = meter.totals()["energy_kwh"]
    time.sleep(0.1)
    assert meter.totals()["energy_kwh"] > before
    meter.stop()


KILLED = """
import os, pathlib, signal, sys, time
import segresmamba.tracking.energy.emissions as emissions
from segresmamba.config import TrackingConfig
emissions.MEASURE_S, emissions.MEASURES_PER_WRITE = 0.05, 1
meter = emissions.EmissionsMeter(pathlib.Path(sys.argv[1]), TrackingConfig(country="FRA"))
meter.start()
meter.totals()  # waits for the start
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_segment_counts_as_last_written(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    (killed,) = segments(tmp_path).values()
    assert killed["duration_s"] > 0.1
    assert measure(tmp_path)["energy_kwh"] > killed["energy_kwh"]
    assert next(iter(segments(tmp_path).values())) == killed


def test_it_needs_no_network_and_leaves_no_files_or_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def connect(*address: object) -> None:
        raise AssertionError(f"connected to {address}")

    (tmp_path / "home").mkdir()
    (tmp_path / "run").mkdir()
    # A token would have CodeCarbon ask a web service.
    (tmp_path / "home" / ".codecarbon.config").write_text(
        "[codecarbon]\nelectricitymaps_api_token = secret\nsave_to_api = true\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setattr(socket.socket, "connect", connect)
    assert measure(tmp_path / "run")["energy_kwh"] > 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "emissions.json",
        ".emissions.lock",
    }
    assert len(list((tmp_path / "home").iterdir())) == 1
    assert capfd.readouterr() == ("", "")


def test_an_unknown_country_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        EmissionsMeter(tmp_path, TrackingConfig(country="XYZ"))
    assert error.value.where == "tracking.country"
    assert error.value.got == "XYZ"


def test_without_a_country_the_worlds_average_is_taken_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    meter = EmissionsMeter(tmp_path, TrackingConfig())
    with caplog.at_level(logging.INFO):
        meter.start()
        meter.stop()
    assert (meter.facts["country"], meter.facts["intensity_g_per_kwh"]) == ("the world", 475)
    assert "neither tracking.country nor tracking.grid_g_per_kwh is set" in caplog.text
    assert "475 g CO2e/kWh in the world (the average that" in Ledger(tmp_path).power()
    totals = meter.totals()
    assert totals["emissions_kg"] == pytest.approx(totals["energy_kwh"] * 0.475)


def test_switched_off_it_does_nothing(tmp_path: Path) -> None:
    meter = EmissionsMeter(tmp_path, TrackingConfig(emissions=False, country="XYZ"))
    meter.start()
    assert meter.totals() == {}
    meter.stop()
    assert list(tmp_path.iterdir()) == []


def test_stopping_twice_or_unstarted_is_no_error(tmp_path: Path) -> None:
    meter = EmissionsMeter(tmp_path, CONFIG)
    meter.stop()
    meter.start()
    meter.stop()
    meter.stop()
    assert len(segments(tmp_path)) == 1


def test_a_driver_that_does_not_answer_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    monkeypatch.setattr("segresmamba.tracking.energy.emissions.START_PATIENCE_S", 0.5)
    monkeypatch.setattr(EmissionsMeter, "_start_tracker", lambda *_: answer.wait() and None)
    meter = EmissionsMeter(tmp_path, CONFIG)
    meter.start()
    meter.totals()
    began_s = time.monotonic()
    for _ in range(20):
        meter.totals()
    assert time.monotonic() - began_s < 5
    answer.set()
    meter.stop()


def test_a_failure_of_codecarbon_never_reaches_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no sensor")

    monkeypatch.setattr("codecarbon.OfflineEmissionsTracker._ensure_hardware_ready", fail)
    with caplog.at_level(logging.WARNING):
        assert measure(tmp_path)["energy_kwh"] == 0
    assert "energy is not measured" in caplog.text
    assert not (tmp_path / "emissions.json").exists()


def test_a_ledger_that_cannot_be_used_never_reaches_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "emissions.json").write_text("{")
    assert measure(tmp_path) == {}
    assert str(tmp_path / "emissions.json") in caplog.text
    assert (tmp_path / "emissions.json").read_text() == "{"


def test_the_intensity_of_ones_own_supplier_is_taken(tmp_path: Path) -> None:
    meter = EmissionsMeter(tmp_path, TrackingConfig(grid_g_per_kwh=25.0))
    meter.start()
    time.sleep(0.1)
    meter.stop()
    totals, (segment,) = meter.totals(), segments(tmp_path).values()
    assert totals["emissions_kg"] == pytest.approx(totals["energy_kwh"] * 25 / 1000)
    assert segment["intensity_g_per_kwh"] == meter.facts["intensity_g_per_kwh"] == 25.0
    assert segment["intensity_source"] == "tracking.grid_g_per_kwh"


def test_a_measurement_that_is_due_while_the_meter_stops_is_not_made_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = PeriodicScheduler.start

    def late(scheduler: PeriodicScheduler, from_run: bool = False) -> None:
        if from_run:
            time.sleep(0.3)
        start(scheduler, from_run)

    monkeypatch.setattr(PeriodicScheduler, "start", late)
    before = set(threading.enumerate())
    measure(tmp_path)
    assert set(threading.enumerate()) <= before


def test_gpus_are_found_by_identity_however_they_are_numbered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine = [{"uuid": f"GPU-{letter}", "gpu_index": i} for i, letter in enumerate("abcd")]
    assert indices_of(["GPU-d", "GPU-b"], machine) == [1, 3]
    assert indices_of([], machine) == []
    assert not caplog.messages
    assert indices_of(["GPU-a", "MIG-x"], machine) == [0]
    assert "MIG-x" in caplog.text


@pytest.mark.parametrize(
    ("uuids", "named"), [(["GPU-b", "GPU-c"], ": 1 x A100, 1 x H200"), (["MIG-x"], "none")]
)
def test_only_the_gpus_that_are_measured_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uuids: list[str], named: str
) -> None:
    models = {"a": "A100", "b": "A100", "c": "H200"}
    machine = [
        {"uuid": f"GPU-{letter}", "gpu_index": number, "name": name}
        for number, (letter, name) in enumerate(models.items())
    ]
    monkeypatch.setattr("segresmamba.tracking.energy.emissions.machine_gpus", lambda: machine)
    meter = EmissionsMeter(tmp_path, CONFIG, uuids)
    meter.start()
    meter.totals()
    meter.stop()
    assert meter.facts["gpu_power"].endswith(named)


@pytest.mark.gpu
def test_only_the_named_gpu_is_measured(tmp_path: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no device")
    uuid = gpu_uuid(torch.device("cuda", 0))
    assert uuid
    for gpus in ([uuid], []):
        folder = tmp_path / str(len(gpus))
        meter = EmissionsMeter(folder, CONFIG, gpus)
        meter.start()
        block = torch.ones(4096, 4096, device="cuda")
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            block = (block @ block).clamp(0, 1)
        meter.stop()
        assert (meter.totals()["gpu_energy_kwh"] > 0) == bool(gpus)


@pytest.mark.parametrize(
    ("environment", "visible", "measured"),
    [
        ({}, 4, None),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 4, None),  # CodeCarbon reads it
        ({"CUDA_VISIBLE_DEVICES": ""}, 4, []),
        ({"SLURM_JOB_GPUS": "2,3", "CUDA_VISIBLE_DEVICES": "2"}, 4, [2, 3]),
        ({"SLURM_JOB_GPUS": "2,3", "CUDA_VISIBLE_DEVICES": "0"}, 2, [0, 1]),  # others are hidden
        ({"SLURM_STEP_GPUS": "1", "SLURM_JOB_GPUS": "0,1"}, 4, [1]),
        ({"SLURM_JOB_GPUS": "0,1"}, 0, []),
    ],
)
def test_the_gpus_of_the_job_are_measured(
    environment: dict[str, str], visible: int, measured: list[int] | None
) -> None:
    assert job_gpus(environment, visible) == measured
