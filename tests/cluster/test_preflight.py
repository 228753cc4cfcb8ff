"""What is found out before training starts, on the nodes themselves.

`Job.end` is patient for minutes; ranks that wait for each other in vain do so for an hour.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from segresmamba.config import load_config
from segresmamba.planner import Planner
from segresmamba.task.task import Task
from tests.cluster import cluster
from tests.cluster.jobs import Queue, queue_stand_in


@pytest.mark.parametrize(
    ("overrides", "said", "where"),
    [
        (
            ("train.device=auto", "cluster.tasks_per_node=2"),
            "there are more ranks than GPUs on a node",
            "n1",
        ),
        (
            ("train.device=auto",),
            "torch cannot use the GPUs of a node, and its ranks would train on the CPU",
            "n1",
        ),
        # The second node has another, empty folder there.
        ((f"data.store={cluster.UNSHARED}/store",), "the store cannot be read", "data.store on n2"),
        (
            ("data.workers=999",),
            "a node has too little memory for its ranks and their readers",
            "n1",
        ),
    ],
)
def test_a_node_that_will_not_do_ends_the_job_in_seconds(
    words: tuple[str, ...],
    tiny_store: Path,
    tmp_path: Path,
    overrides: tuple[str, ...],
    said: str,
    where: str,
) -> None:
    if where == "data.store on n2":
        if not cluster.may_unshare():
            pytest.skip("this machine makes no mount namespaces")
        shutil.copytree(tiny_store, cluster.UNSHARED / "store")
    job = queue_stand_in("refused", tmp_path, *words, *overrides)
    assert job.end().exit_code == 2, job.log
    assert f"error: {said}\n  where:  {where}" in job.log
    assert job.log.splitlines()[-1].startswith("  remedy: ")
    assert not (job.run / "journal.jsonl").exists()


def test_a_step_that_the_gpus_cannot_hold_is_refused_before_it_starts(
    queue_run: Queue, words: tuple[str, ...], tmp_path: Path
) -> None:
    config = load_config(list(words))
    memory_mib = int(1024 * Planner(Task.from_config(config)).predict(config).needed_gib)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho {memory_mib}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    setup = f"cluster.setup=['export PATH={tmp_path}:$PATH']"
    job = queue_run("small", setup, "plan.gpu_memory_gib=40", "plan.strict=true")
    assert job.end().exit_code == 2, job.log
    assert "error: a training step does not fit the GPUs\n  where:  the GPUs of n1" in job.log
    remedy = job.log.splitlines()[-1]
    assert remedy.startswith("  remedy: does not fit; with these overrides it does:")
    assert not (job.run / "journal.jsonl").exists()


def test_a_run_folder_that_the_nodes_do_not_share_is_noticed(words: tuple[str, ...]) -> None:
    if not cluster.may_unshare():
        pytest.skip("this machine gives no mount namespace to the second node")
    job = queue_stand_in("mine", cluster.UNSHARED, *words)
    assert job.end().exit_code == 2, job.log
    assert "error: the run folder is not shared between the nodes\n  where:  run.root" in job.log
    assert f"{cluster.UNSHARED}: n2 does not see what the first node wrote there" in job.log
