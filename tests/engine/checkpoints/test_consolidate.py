"""The pieces of all ranks become full weights again, without a process group."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segresmamba.config import Config, read_config
from segresmamba.engine.checkpoints.checkpoint import Checkpoints, Meta
from segresmamba.engine.distributed import join
from segresmamba.engine.zero import ZeroEngine
from segresmamba.inference.trained import open_models
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import build_network
from segresmamba.task.weights import read_weights, shapes_of
from tests.cli.test_main import run
from tests.damage import flip
from tests.engine.ranks import RankPool
from tests.engine.tiny import tiny_config
from tests.inference.conftest import write_run


def saved(folder: Path, config: Config) -> dict[str, torch.Tensor]:
    """Make a step, save a checkpoint of it, and return the weights that it has."""
    ranks, run_folder = Ranks.from_environment(), RunFolder(folder)
    join(ranks, threads=1)
    network = build_network(read_config(run_folder.config), 1, 3)
    shapes = shapes_of(network)
    engine = ZeroEngine(network, config, ranks)
    logits = engine.forward(torch.randn(2, 1, 16, 16, 16))
    assert isinstance(logits, torch.Tensor)
    engine.backward(logits.square().mean(), 1e-2)
    checkpoints = Checkpoints(run_folder, ranks, 2, lambda: None)
    stage = config.train.zero_stage
    checkpoints.save(engine, Meta(1, ranks.world_size, stage, "none", shapes))
    checkpoints.go_on(wait=True)
    return engine.weights()


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_checkpoint_becomes_a_model_folder(
    stage: int,
    two_ranks: RankPool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, out = write_run(tmp_path / "run"), tmp_path / "model"
    config = tiny_config(tmp_path, tmp_path, f"train.zero_stage={stage}")
    expected, _ = two_ranks.run(saved, folder, config)
    assert run(monkeypatch, "export", folder, "--out", out, "--checkpoint", "newest") == 0
    (model,) = open_models(out)
    weights, facts = read_weights(model.weights)
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    assert (facts.step, facts.dice) == (1, None)
    before, _ = read_weights(RunFolder(folder).best)
    assert any(not torch.equal(before[name], weights[name]) for name in weights)
    again = ("export", folder, "--out", tmp_path / "again", "--checkpoint")
    assert run(monkeypatch, *again, "7") == 2
    assert "7; there are [1]" in capsys.readouterr().err
    assert run(monkeypatch, *again, "last") == 2
    flip(RunFolder(folder).checkpoint(1) / "rank-00001.pt")
    assert run(monkeypatch, *again, "1") == 2
    assert "the checkpoint is damaged" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "run"]
