"""`python -m launch predict` and slurm/predict.sh on a real Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.jobs import Job, launch
from tests.cluster.test_scripts import batch, output
from tests.data.raw import write_nifti
from tests.inference.conftest import OWN_NETWORK, noise, write_run

WORDS = ("cluster=slurm", "cluster.cpus_per_task=1", "cluster.time_min=10")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_run(tmp_path / "model", model=OWN_NETWORK)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "imagesTs").mkdir()
    for case in "abc":
        write_nifti(tmp_path / "imagesTs" / f"{case}_0000.nii.gz", noise(17, 18, 19))
    return tmp_path / "imagesTs"


def segmented(out: Path) -> list[str]:
    return sorted(json.loads((out / "predict.json").read_text())["cases"])


def test_an_array_segments_a_folder(model: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = launch("predict", str(model), str(images), str(out), "--device", "cpu", *WORDS)
    assert done.returncode == 0, done.stderr
    array = done.stdout.split()[5].strip(",")
    for number in range(3):  # no more jobs than cases
        job = Job(f"{array}_{number}", tmp_path / "out.logs")
        log = job.run / f"{job.id}_0_log.out"
        assert job.end().exit_code == 0, log.read_text()
    assert segmented(out) == ["a", "b", "c"]


def test_the_script_segments_a_folder_on_one_node(
    model: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    to_cpu = ("--device", "cpu")  # torch cannot use the cluster's stand-in GPUs
    job = batch("predict.sh", str(model), str(images), str(out), *to_cpu, cwd=tmp_path)
    assert job.end().exit_code == 0, output(job)
    assert segmented(out) == ["a", "b", "c"]
