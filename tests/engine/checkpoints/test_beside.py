"""Checkpoints are written beside the training: what it goes on to do, and what may go wrong."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from segresmamba.engine import train
from segresmamba.engine.checkpoints import checkpoint
from segresmamba.engine.checkpoints.checkpoint import Checkpoints, load_newest
from segresmamba.engine.checkpoints.rank_files import rank_file, write_rank
from segresmamba.engine.trainer import Trainer
from segresmamba.engine.zero import ZeroEngine
from segresmamba.storage.run_folder import RunFolder
from tests.engine.checkpoints.test_damage import new_engine, total
from tests.engine.ranks import RankContext, RankPool
from tests.engine.tiny import tiny_config


def train_step(engine: ZeroEngine, crops: int = 2) -> None:
    logits = engine.forward(torch.randn(crops, 1, 16, 16, 16))
    assert isinstance(logits, torch.Tensor)
    engine.backward(logits.square().mean(), 1e-2)


def test_training_goes_on_while_a_checkpoint_is_written_and_it_holds_its_own_step(
    finished_run: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on, completed, step = Event(), list[list[int]](), Trainer._train_step
    folder = RunFolder(tmp_path / "beside" / "tiny")

    def written_late(*arguments: Any) -> str:
        assert trained_on.wait(60)
        return write_rank(*arguments)

    def watched(trainer: Trainer, *arguments: Any) -> bool:
        stop = step(trainer, *arguments)
        if trainer.step == 3:
            completed.append(folder.saved_steps())
            trained_on.set()
        return stop

    monkeypatch.setattr(checkpoint, "write_rank", written_late)
    monkeypatch.setattr(Trainer, "_train_step", watched)
    train(tiny_config(tiny_store, tmp_path / "beside", "train.checkpoint_every=2"))
    assert completed == [[]]
    assert folder.saved_steps() == [2, 4]
    for number in (2, 4):
        pieces = [
            torch.load(rank_file(run.checkpoint(number), 0), weights_only=True)["pieces"]
            for run in (RunFolder(finished_run), folder)
        ]
        for (_, before_3n), (_, beside_3n) in zip(*map(dict.values, pieces), strict=True):
            torch.testing.assert_close(before_3n, beside_3n)


def fail_on_rank_1(root: Path) -> str:
    engine, meta, ranks = new_engine(root)
    train_step(engine, 1)

    def full(folder: Path, content: Any, ranks: Any) -> str:
        if ranks.rank == 1:
            raise OSError(28, "No space left on device")
        return write_rank(folder, content, ranks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write_rank", full)
        checkpoints = Checkpoints(RunFolder(root), ranks, 2, lambda: None)
        checkpoints.save(engine, replace(meta, step=1))
        with pytest.raises(OSError, match="No space left") as raised:
            checkpoints.go_on(wait=True)
    return str(raised.value)


def test_an_error_of_one_writer_is_raised_on_all_ranks_and_nothing_is_complete(
    two_ranks: RankPool, tmp_path: Path
) -> None:
    two_ranks.run(fail_on_rank_1, tmp_path)
    assert RunFolder(tmp_path).saved_steps() == []


def killed_while_it_writes(root: Path) -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    engine, meta, ranks = new_engine(root)
    checkpoints = Checkpoints(RunFolder(root), ranks, 2, lambda: None)
    train_step(engine)
    checkpoints.save(engine, replace(meta, step=1))
    train_step(engine)

    def killed(path: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    pytest.MonkeyPatch().setattr("segresmamba.engine.checkpoints.rank_files.sync", killed)
    checkpoints.save(engine, replace(meta, step=2))
    checkpoints.go_on(wait=True)


def test_a_kill_while_a_checkpoint_is_written_loses_only_that_one(tmp_path: Path) -> None:
    process = RankContext().Process(target=killed_while_it_writes, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run, left = RunFolder(tmp_path), tmp_path / "checkpoints" / ".writing-step-00000002"
    assert run.saved_steps() == [1]
    assert rank_file(left, 0).exists()
    engine, meta, ranks = new_engine(tmp_path)
    found = load_newest(run, engine, meta, ranks)
    assert found is not None
    assert (found.meta.step, found.skipped) == (1, {})
    train_step(engine)
    checkpoints = Checkpoints(run, ranks, 2, lambda: None)
    checkpoints.save(engine, replace(meta, step=2))
    checkpoints.go_on(wait=True)
    assert run.saved_steps() == [1, 2]
    assert not left.exists()


def test_a_second_save_waits_for_the_first_and_uses_its_memory_again(
    tmp_path: Path,
) -> None:
    engine, meta, ranks = new_engine(tmp_path)
    run, flushed = RunFolder(tmp_path), list[list[int]]()
    checkpoints = Checkpoints(run, ranks, 2, lambda: flushed.append(run.saved_steps()))
    sums, places = [], []
    for step in (1, 2):
        train_step(engine)
        checkpoints.save(engine, replace(meta, step=step))
        sums.append(total(engine))
        places.append({name: t.data_ptr() for name, t in engine.state._host.items()})
    assert run.saved_steps() == [1]
    checkpoints.go_on(wait=True)
    assert flushed == [[], [1]]  # what was recorded is on the disk before a checkpoint counts
    assert places[0] == places[1]
    for step, expected in zip((1, 2), sums, strict=True):
        content = torch.load(rank_file(run.checkpoint(step), 0), weights_only=True)
        found = sum(float(piece_3n[0].double().sum()) for _, piece_3n in content["pieces"].values())
        assert found == pytest.approx(expected, abs=1e-6)
