"""Joining a process group, seen from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segresmamba.engine.distributed import join
from segresmamba.errors import LaunchError
from segresmamba.task.ranks import Ranks, environment_of_one
from tests.engine.tiny import TINY, journal_losses

_JOINS = """
import os
from segresmamba.engine.distributed import Ranks, from_main, join
before = dict(os.environ)
join(Ranks.from_environment(), threads=1)
assert from_main("alone") == "alone"
print(sorted(set(os.environ.items()) ^ set(before.items())))
"""


def test_a_job_of_one_leaves_the_environment_to_its_children_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = subprocess.run(
        [sys.executable, "-c", _JOINS],
        env=environment_of_one(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_a_job_of_its_own_knows_nothing_of_the_job_that_starts_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    environment = environment_of_one()
    assert environment["OMP_NUM_THREADS"] == "7"
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"} & environment.keys()


@pytest.mark.slow
def test_torchrun_starts_the_ranks_of_a_training(tmp_path: Path, tiny_store: Path) -> None:
    """What starts torchrun, such as Kubernetes, LSF or PBS, can train without Slurm."""
    words = [*TINY, "train.max_steps=2", "train.fold=none", "run.name=two"]
    words += [f"data.store={tiny_store}", f"run.root={tmp_path}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "segresmamba.cli.main", "train", *words],
        capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(journal_losses(tmp_path / "two")) == [1, 2]
    assert '"world_size": "2"' in (tmp_path / "two" / "journal.jsonl").read_text()


@pytest.mark.parametrize("is_shared", [True, False])
def test_restarts_by_torchrun_that_would_hang_are_refused(
    is_shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", str(is_shared))
    joined: list[str] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: joined.append(""))
    monkeypatch.setattr("atexit.register", lambda _: None)
    ranks = Ranks(0, 2, 0, 2, torch.device("cpu"))
    if is_shared:
        with pytest.raises(LaunchError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
            join(ranks, threads=1)
    else:
        join(ranks, threads=1)
    assert bool(joined) is not is_shared


@pytest.mark.parametrize("world_size", [1, 2])
def test_only_ranks_with_others_bind_their_group_to_a_gpu(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL would split DeepSpeed's groups from a bound one, which has failed on a single GPU."""
    given: dict[str, object] = {}
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda *_, **options: given.update(options)
    )
    monkeypatch.setattr("atexit.register", lambda _: None)
    gpu = torch.device("cuda", world_size - 1)
    join(Ranks(world_size - 1, world_size, world_size - 1, world_size, gpu), threads=1)
    assert given["device_id"] == (gpu if world_size > 1 else None)
    assert (given["store"] is None) == (world_size > 1)
