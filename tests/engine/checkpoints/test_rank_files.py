"""What ranks have of their own comes back, whoever takes it up; weights are in test_elastic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segresmamba.config import Config
from segresmamba.engine.checkpoints.rank_files import (
    read_ranks,
    restore_ranks,
    snapshot,
    write_rank,
)
from segresmamba.engine.distributed import join
from segresmamba.engine.zero import ZeroEngine
from segresmamba.models import SegResMamba
from segresmamba.task.ranks import Ranks
from tests.engine.ranks import RankPool
from tests.engine.tiny import tiny_config


def new_engine(config: Config) -> tuple[ZeroEngine, Ranks]:
    ranks = Ranks.from_environment()
    join(ranks, threads=1)
    network = SegResMamba(dims=(8, 8), d_state=4)
    network.register_buffer("counted", torch.zeros(3))
    return ZeroEngine(network, config, ranks), ranks


def restored(folder: Path, config: Config) -> tuple[object, float, list[float]]:
    engine, ranks = new_engine(config)
    files = read_ranks(folder, ranks, writers=1, sizes=engine.sizes, digests={})
    restore_ranks(files, engine, ranks, step=1)
    assert engine.scaler is not None
    return engine.scaler.state(), torch.rand(()).item(), engine.buffers()["counted"].tolist()


def test_new_ranks_begin_with_the_loss_scale_random_state_and_buffers_of_the_first(
    two_ranks: RankPool, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path, tmp_path, "train.precision=fp16", "train.zero_stage=2")
    engine, ranks = new_engine(config)
    assert engine.scaler is not None
    logits = engine.forward(torch.randn(2, 1, 16, 16, 16))
    assert isinstance(logits, torch.Tensor)
    engine.backward(logits.square().mean(), 1e-3)
    engine.scaler.restore((128.0, 7))
    engine.network.get_buffer("counted").fill_(5.0)
    write_rank(tmp_path, snapshot(engine), ranks)
    written = ((128.0, 7), torch.rand(()).item(), [5.0, 5.0, 5.0])
    assert two_ranks.run(restored, tmp_path, config) == [written, written]


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="the device is used here")
def test_a_training_on_the_cpu_leaves_a_gpu_that_is_there_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, ranks = new_engine(tiny_config(tmp_path, tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    content = snapshot(engine)
    assert content["random"]["cuda"] is None
    write_rank(tmp_path, content, ranks)
