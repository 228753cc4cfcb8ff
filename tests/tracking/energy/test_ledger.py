from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking import TrackingError
from segresmamba.tracking.energy.ledger import SUMMED, Ledger


def segment(energy_kwh: float) -> dict[str, float]:
    return {**dict.fromkeys(SUMMED, 0.0), "energy_kwh": energy_kwh}


def under_slurm(monkeypatch: pytest.MonkeyPatch, restart: int, node: str) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
    monkeypatch.setenv("SLURMD_NODENAME", node)


def test_nothing_measured_is_nothing_used(tmp_path: Path) -> None:
    assert Ledger(tmp_path).totals() == dict.fromkeys((*SUMMED, "measured_kwh"), 0.0)


def test_measured_and_estimated_energy_are_told_apart(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    used = {"energy_kwh": 7.0, "cpu_energy_kwh": 1.0, "gpu_energy_kwh": 2.0, "ram_energy_kwh": 4.0}
    for cpu_power in ("measured (RAPL)", "estimated from load"):
        powers = {"cpu_power": cpu_power, "gpu_power": "measured (NVML): 1 x H200"}
        key = ledger.claim({**powers, "ram_power": "estimated from size"})
        ledger.update(key, used)
    ledger.update(ledger.claim({}), used)  # an early version did not say how
    assert ledger.totals()["measured_kwh"] == 5.0


def test_segments_are_named_by_job_restart_and_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path)
    for restart, node in ((0, "n1"), (0, "n2"), (1, "n1")):
        under_slurm(monkeypatch, restart, node)
        assert ledger.claim({}) == f"4711/{restart}/{node}"


def test_running_totals_replace_each_other_and_segments_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path)
    for restart in range(3):  # the first two were killed: nobody closed their segments
        under_slurm(monkeypatch, restart, "n1")
        key = ledger.claim({"country": "FRA"})
        for energy_kwh in (0.25, 0.5, 1.0):
            ledger.update(key, segment(energy_kwh))
    assert ledger.totals()["energy_kwh"] == 3.0
    stored = json.loads(RunFolder(tmp_path).emissions.read_text())["segments"]
    assert [facts["country"] for facts in stored.values()] == ["FRA"] * 3


def test_a_second_start_in_one_job_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_slurm(monkeypatch, 0, "n1")
    keys = []
    for _ in range(3):
        keys.append(Ledger(tmp_path).claim({}))
        Ledger(tmp_path).update(keys[-1], segment(1.0))
    assert keys == ["4711/0/n1", "4711/0/n1#2", "4711/0/n1#3"]
    assert Ledger(tmp_path).totals()["energy_kwh"] == 3.0


def test_nodes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    def node(_: int) -> None:
        ledger = Ledger(tmp_path)
        key = ledger.claim({})
        for count in range(1, 11):
            ledger.update(key, segment(float(count)))

    with ThreadPoolExecutor(4) as nodes:
        list(nodes.map(node, range(4)))
    assert Ledger(tmp_path).totals()["energy_kwh"] == 40.0


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema": 1}', '{"schema": 1, "segments": 3}']
)
def test_a_damaged_ledger_is_named_and_left_alone(tmp_path: Path, content: str) -> None:
    RunFolder(tmp_path).emissions.write_text(content)
    with pytest.raises(TrackingError, match="damaged") as error:
        Ledger(tmp_path).claim({})
    assert error.value.where == str(RunFolder(tmp_path).emissions)
    assert RunFolder(tmp_path).emissions.read_text() == content


def test_a_newer_ledger_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path).emissions.write_text('{"schema": 2, "segments": {}}')
    with pytest.raises(TrackingError, match="newer version"):
        Ledger(tmp_path).totals()
