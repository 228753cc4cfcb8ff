"""`python -m launch convert` on a real Slurm: an array over two nodes, a lost job, a bad case."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from segresmamba.data import convert, open_dataset, verify
from tests.cluster.jobs import Job, launch, slurm
from tests.data.raw import label_path, write_raw

WORDS = ("cluster=slurm", "cluster.cpus_per_task=1", "cluster.time_min=10", "--tasks=3")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_raw(tmp_path / "raw", shapes=[(60, 60, 60)] * 9)


def queue_conversion(raw: Path, store: Path) -> tuple[str, Job]:
    """The array's number, and the job that ends the store."""
    done = launch("convert", str(raw), str(store), *WORDS)
    assert done.returncode == 0, done.stderr
    array, end, _ = done.stdout.splitlines()
    return array.split()[5].strip(","), Job(end.split()[2], store.with_name("store.logs"))


def log_of(end: Job) -> str:
    return (end.run / f"{end.id}_0_log.out").read_text()


def test_an_array_makes_the_store_that_one_process_makes(raw: Path, tmp_path: Path) -> None:
    array, end = queue_conversion(raw, tmp_path / "store")
    # One job loses its node before it has begun, or while it works.
    slurm("scontrol", "requeue", f"{array}_1")
    time.sleep(2)  # the nodes take an earlier start for the old one
    slurm("scontrol", "update", f"jobid={array}_1", "StartTime=now")
    assert end.end().exit_code == 0, log_of(end)
    assert verify(tmp_path / "store") == []
    alone = convert(raw, tmp_path / "alone")
    assert open_dataset(tmp_path / "store").digest == alone.digest
    assert "9 there already" in log_of(end)


def test_bad_cases_are_named_and_the_same_command_goes_on(raw: Path, tmp_path: Path) -> None:
    path = label_path(raw, "case_4")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    _, end = queue_conversion(raw, tmp_path / "store")
    assert end.end().exit_code == 2
    assert f"where:  {path}" in log_of(end)
    assert len(list((tmp_path / "store").glob("case_*"))) == 8
    path.write_bytes(whole)
    shutil.rmtree(tmp_path / "store.logs")
    _, end = queue_conversion(raw, tmp_path / "store")
    assert end.end().exit_code == 0, log_of(end)
    assert verify(tmp_path / "store") == []
