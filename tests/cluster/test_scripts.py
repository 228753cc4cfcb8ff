"""The other scripts for sbatch, each once."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from segresmamba.data import open_dataset
from tests.cluster.conftest import Followed
from tests.cluster.jobs import REPOSITORY, Job, run, slurm, wait_until
from tests.conftest import write_nnunet_dataset


def batch(script: str, *words: str, cwd: Path) -> Job:
    command = ("sbatch", "--parsable", "--cpus-per-task=1", str(REPOSITORY / "slurm" / script))
    done = run(*command, *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return Job(done.stdout.strip(), cwd)


def output(job: Job) -> str:
    return (job.run / f"slurm-{job.id}.out").read_text()


def test_a_dataset_is_converted(tmp_path: Path) -> None:
    raw = write_nnunet_dataset(tmp_path / "raw", cases=2)
    job = batch("convert.sh", str(raw), str(tmp_path / "store"), cwd=tmp_path)
    assert job.end().exit_code == 0, output(job)
    assert len(open_dataset(str(tmp_path / "store")).case_ids) == 2


def test_an_evaluation_reports_to_the_server_that_another_job_runs(
    reference: Followed, root: Path, tmp_path: Path
) -> None:
    server = batch("mlflow.sh", str(root), cwd=tmp_path)
    address = root / "mlflow-server.json"
    wait_until(address.exists, "the address", lambda: output(server))
    uri = json.loads(address.read_text())["uri"]

    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{uri}/api/2.0/mlflow/runs/get?run_id=0", timeout=60)

    job = batch("evaluate.sh", str(reference.job.run), cwd=tmp_path)
    assert job.end().exit_code == 0, output(job)
    assert (reference.job.run / "results.json").exists()
    upload = json.loads((reference.job.run / "mlflow.json").read_text())
    assert upload["uri"] == uri
    assert upload["sent_bytes"] == (reference.job.run / "journal.jsonl").stat().st_size
    assert f"{uri}/#/experiments/" in output(job)

    slurm("scancel", server.id)
    wait_until(lambda: not address.exists(), "the end of the server")
