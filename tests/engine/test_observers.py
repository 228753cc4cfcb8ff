"""What a run records besides its metrics, and what it leaves when memory runs out."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from segresmamba.engine import train
from segresmamba.errors import UserError
from segresmamba.inference import predict
from segresmamba.task.task import Task
from segresmamba.tracking import read_history, read_journal, sync
from tests.engine.tiny import tiny_config


@pytest.fixture(scope="module")
def run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with everything on; MLflow gets it by `sync`."""
    root = tmp_path_factory.mktemp("observed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        patch.setattr("segresmamba.tracking.energy.system.SAMPLE_S", 0.05)
        options = ("train.max_steps=2", "tracking.emissions=true", "tracking.system_metrics=true")
        train(tiny_config(tiny_store, root, *options, "tracking.register_model=tiny"))
    return root / "tiny"


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    return [record.body for record in read_journal(run / "journal.jsonl") if record.kind == kind]


def values(run: Path) -> dict[str, float]:
    merged: dict[str, float] = {}
    for record in records(run, "metrics"):
        merged |= record["values"]
    return merged


def tags(run: Path) -> dict[str, str]:
    merged: dict[str, str] = {}
    for record in records(run, "tags"):
        merged |= record["values"]
    return merged


def test_every_phase_has_its_peaks_by_rank(run: Path) -> None:
    (rank,) = json.loads((run / "memory.json").read_text())["ranks"]
    assert set(rank) == {"load", "train", "validate", "save"}
    assert all(0.1 < gauges["host_peak_gib"] < 64 for gauges in rank.values())
    metrics = values(run)
    assert metrics["memory/validate/host_peak_gib/max"] == rank["validate"]["host_peak_gib"]
    assert metrics["memory/host_peak_gib"] == max(g["host_peak_gib"] for g in rank.values())


def test_the_journal_says_where_time_memory_and_energy_went(run: Path) -> None:
    def recorded(metric: str) -> list[float]:
        bodies = records(run, "metrics")
        return [body["values"][metric] for body in bodies if metric in body["values"]]

    step_s, wait_s, compute_s = (
        recorded(f"time/{part}_s") for part in ("step", "data_wait", "compute")
    )
    assert len(step_s) == 2
    assert step_s == pytest.approx([a + b for a, b in zip(wait_s, compute_s, strict=True)])
    assert recorded("throughput/voxels_per_s") == pytest.approx([2 * 32**3 / s for s in step_s])
    assert all(0.1 < peak < 64 for peak in recorded("memory/host_peak_gib"))
    assert recorded("energy/energy_kwh")[0] > 0
    assert recorded("energy/emissions_kg")[0] > 0
    assert len(recorded("validation/dice/mean")) == 1


def test_no_metric_has_two_values_of_one_step_and_the_last_peak_is_that_of_the_whole_run(
    run: Path,
) -> None:
    points = [(body["step"], key) for body in records(run, "metrics") for key in body["values"]]
    assert len(points) == len(set(points))
    (rank,) = json.loads((run / "memory.json").read_text())["ranks"]
    highest = max(gauges["host_peak_gib"] for gauges in rank.values())
    assert read_history(run).last("memory/host_peak_gib") == highest


def test_energy_is_told_per_patch_and_how_it_is_known(run: Path) -> None:
    metrics = values(run)
    patches = 2 * 2  # steps, crops
    assert metrics["energy/wh_per_1000_patches"] == pytest.approx(
        metrics["energy/energy_kwh"] * 1e6 / patches
    )
    assert tags(run)["energy.cpu_power"] in ("measured (RAPL)", "estimated from load")
    assert "IEA's report of 2019" in tags(run)["energy.intensity_source"]


def test_the_dataset_and_the_environment_are_recorded(run: Path) -> None:
    (dataset,) = records(run, "dataset")
    assert dataset["digest"] == tags(run)["dataset_digest"]
    assert dataset["profile"]["cases"] == 5
    assert "torch==" in (run / "environment.txt").read_text()
    assert "version.torch" in tags(run)


def test_the_node_was_sampled(run: Path) -> None:
    (journal,) = (run / "system").glob("*.jsonl")
    assert "cpu_utilization_percentage" in journal.read_text()


@pytest.mark.slow
def test_the_best_model_segments_a_path_as_predict_does_and_an_array(
    run: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("enabled: false", "enabled: true"))
    state = sync(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's, about its own types
        import mlflow

        mlflow.set_tracking_uri(state.uri)
        model = mlflow.pyfunc.load_model("models:/tiny/1")
        images = sorted((tiny_store.parent / "raw" / "imagesTr").glob("case0_*"))
        (label,) = model.predict({"image": [str(image) for image in images]})
        voxels = np.stack([np.asarray(nib.load(image).dataobj) for image in images])
        (of_array,) = model.predict({"image": voxels})
    predict(run, images, tmp_path / "label.nii.gz")
    expected = np.asarray(nib.load(tmp_path / "label.nii.gz").dataobj)
    np.testing.assert_array_equal(label, expected)
    assert of_array.shape == voxels.shape[1:]


class _Greedy(torch.nn.Module):
    """A loss that wants more memory than any machine has."""

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.empty(1 << 60).sum() + logits.sum()


def test_running_out_of_memory_leaves_a_snapshot_and_advice(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Task, "loss", lambda _: _Greedy())
    with pytest.raises(UserError, match="ran out of memory") as error:
        train(tiny_config(tiny_store, tmp_path))
    assert "segresmamba plan" in error.value.remedy  # there is no GPU to plan for
    assert "train.batch_size=2" in error.value.got
    snapshot = json.loads(Path(error.value.where).read_text())
    assert snapshot["phase"] == "train"
    assert snapshot["peaks"]["load"]["host_peak_gib"] > 0.1
    assert records(tmp_path / "tiny", "status")[-1]["status"] == "failed"


@pytest.mark.parametrize(
    ("gpu_memory_gib", "advice"),
    [
        (40, "GiB to spare, if nothing else is on it"),
        (1.012, "does not fit; with these overrides it does: train.accumulation=2"),
        (0.5, "no training step of this network fits"),
    ],
)
def test_the_snapshot_and_the_error_have_the_planners_advice(
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpu_memory_gib: float,
    advice: str,
) -> None:
    monkeypatch.setattr(Task, "loss", lambda _: _Greedy())
    with pytest.raises(UserError, match="ran out of memory") as error:
        train(tiny_config(tiny_store, tmp_path, f"plan.gpu_memory_gib={gpu_memory_gib}"))
    assert advice in error.value.remedy
    assert advice in json.loads(Path(error.value.where).read_text())["advice"]
