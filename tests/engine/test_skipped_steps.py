"""Steps whose loss or gradient is not finite: skipped on all ranks, counted, and repeated later."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from segresmamba.engine import train
from segresmamba.engine.distributed import join
from segresmamba.engine.zero import ZeroEngine
from segresmamba.errors import UserError
from segresmamba.models import SegResMamba
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.losses import SegmentationLoss
from segresmamba.task.ranks import Ranks
from tests.engine.ranks import RankPool
from tests.engine.tiny import journal_losses, tiny_config

Steps = list[tuple[float, float]]
"""Norm of the gradient, and the sum of all weights after the step."""


def take_steps(root: Path, *overrides: str, broken: dict[int, str], only_rank: str) -> Steps:
    """Three steps; the loss of those in `broken` is spoilt on one rank alone."""
    ranks = Ranks.from_environment()
    join(ranks, threads=1)
    torch.manual_seed(0)
    config = tiny_config(root, root, *overrides)
    engine = ZeroEngine(SegResMamba(dims=(8, 8), d_state=4), config, ranks)
    taken = []
    for step in range(3):
        images = torch.Generator().manual_seed(1)
        logits = engine.forward(torch.randn(2 // ranks.world_size, 1, 16, 16, 16, generator=images))
        assert isinstance(logits, torch.Tensor)
        loss = logits.float().square().mean()
        if os.environ.get("RANK", "0") == only_rank and step in broken:
            spoil = float(broken[step])
            loss = loss * spoil if math.isnan(spoil) else loss + spoil
        engine.backward(loss, 1e-2)
        total = sum(float(weight.double().abs().sum()) for weight in engine.weights().values())
        taken.append((float(engine.gradient_norm), total))
    return taken


def on_two_ranks(root: Path, stage: int, precision: str, spoil: str) -> Steps:
    settings = (f"train.zero_stage={stage}", f"train.precision={precision}")
    return take_steps(root, *settings, broken={1: spoil}, only_rank="1")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("spoil", ["nan", "inf"])
def test_two_ranks_skip_a_step_that_is_broken_on_one_of_them(
    two_ranks: RankPool, tmp_path: Path, stage: int, precision: str, spoil: str
) -> None:
    first, second = two_ranks.run(on_two_ranks, tmp_path, stage, precision, spoil)
    assert str(first) == str(second)  # nan equals nothing
    norms, totals = zip(*first, strict=True)
    assert [math.isfinite(norm) for norm in norms] == [True, False, True]
    assert totals[1] == totals[0]
    assert totals[2] != totals[1]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[int]], None]:
    """A function of the calls of the loss, from 1 on, whose result becomes nan."""
    forward = SegmentationLoss.forward

    def choose(calls: Iterable[int]) -> None:
        wanted, count = set(calls), 0

        def spoilt(self: SegmentationLoss, *arguments: Any) -> torch.Tensor:
            nonlocal count
            count += 1
            return forward(self, *arguments) * (math.nan if count in wanted else 1)

        monkeypatch.setattr(SegmentationLoss, "forward", spoilt)

    return choose


def evidence(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunFolder(run).skipped.read_text().splitlines()]


def metric(run: Path, key: str) -> dict[int, float]:
    lines = [json.loads(line) for line in RunFolder(run).journal.read_text().splitlines()]
    return {line["step"]: line["values"][key] for line in lines if key in line.get("values", {})}


def test_a_skipped_step_is_counted_and_its_batch_kept(
    tiny_store: Path, tmp_path: Path, spoil: Callable[[Iterable[int]], None]
) -> None:
    spoil([2])
    assert train(tiny_config(tiny_store, tmp_path))["status"] == "finished"
    run = tmp_path / "tiny"
    (found,) = evidence(run)
    assert (found["step"], found["gradient_norm"]) == (2, "nan")
    (batch,) = found["batches"]
    assert (batch["rank"], batch["loss"], batch["crops"]) == (0, "nan", [2, 3])
    assert len(batch["cases"]) == 2
    assert metric(run, "train/skipped_steps") == {2: 1.0, 3: 1.0, 4: 1.0}
    assert math.isnan(float(journal_losses(run)[2]))
    assert all(math.isfinite(journal_losses(run)[step]) for step in (1, 3, 4))


@pytest.mark.parametrize("stage", [0, 3])
def test_a_skipped_step_is_kept_with_its_weights_when_the_next_one_is_queued(
    tiny_store: Path, tmp_path: Path, spoil: Callable[[Iterable[int]], None], stage: int
) -> None:
    """The host learns of it in the middle of the next step, before the weights change."""
    for name, every in (("at-once", 1), ("later", 4)):
        spoil([2])
        words = (f"train.log_every={every}", f"train.zero_stage={stage}", f"run.name={name}")
        train(tiny_config(tiny_store, tmp_path, *words))
    (at_once,), (later,) = (evidence(tmp_path / name) for name in ("at-once", "later"))
    assert later == at_once
    kept = [torch.load(RunFolder(tmp_path / name).skipped_weights) for name in ("at-once", "later")]
    for name, weight in kept[0]["weights"].items():
        torch.testing.assert_close(kept[1]["weights"][name], weight)
    # The loss of an interval is that of the steps that were made.
    losses = journal_losses(tmp_path / "at-once")
    mean = sum(losses[step] for step in (1, 3, 4)) / 3
    assert journal_losses(tmp_path / "later")[4] == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_resumed_run_remembers_its_skipped_steps_and_goes_on_as_if_never_stopped(
    tiny_store: Path, tmp_path: Path, spoil: Callable[[Iterable[int]], None], stage: int
) -> None:
    settings = (f"train.zero_stage={stage}", "train.max_steps=5", "train.checkpoint_every=2")
    spoil([1, 2])
    run = Path(train(tiny_config(tiny_store, tmp_path, *settings, "train.keep_last=9"))["folder"])
    whole = journal_losses(run)
    for step in (4, 5):
        RunFolder(run).checkpoint(step).rename(tmp_path / str(step))
    RunFolder(run).journal.unlink()
    spoil([])
    train(tiny_config(tiny_store, tmp_path, *settings))
    assert {step: whole[step] for step in (3, 4, 5)} == pytest.approx(journal_losses(run), abs=1e-5)
    assert metric(run, "train/skipped_steps") == {3: 2.0, 4: 2.0, 5: 2.0}


def test_too_many_skipped_steps_in_a_row_end_the_run_and_spare_the_last_checkpoint(
    tiny_store: Path, tmp_path: Path, spoil: Callable[[Iterable[int]], None]
) -> None:
    spoil([3, 4])
    settings = ("train.checkpoint_every=2", "train.max_skipped_in_a_row=1")
    with pytest.raises(UserError, match=r"step 4;.*the last 2 in a row.*checkpoint .* step 2"):
        train(tiny_config(tiny_store, tmp_path, *settings))
    assert RunFolder(tmp_path / "tiny").saved_steps()[-1] == 2
    assert [record["step"] for record in evidence(tmp_path / "tiny")] == [3, 4]


def test_too_large_a_share_of_skipped_steps_ends_the_run(
    tiny_store: Path, tmp_path: Path, spoil: Callable[[Iterable[int]], None]
) -> None:
    spoil([1, 3])
    settings = ("train.max_steps=6", "train.max_skipped_in_a_row=1")
    with pytest.raises(UserError, match=r"step 3;.*2 steps skipped, the last 1 in a row"):
        train(tiny_config(tiny_store, tmp_path, *settings, "train.max_skipped_share=0.5"))
    spoil([1, 3])
    shared = (*settings, "train.max_skipped_share=0.7", "run.name=more")
    assert train(tiny_config(tiny_store, tmp_path, *shared))["status"] == "finished"
