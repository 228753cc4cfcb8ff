"""A run that goes on with other ranks, at another ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from segresmamba.engine import request_stop, train
from tests.engine.ranks import RankPool
from tests.engine.tiny import journal_losses, tiny_config

SETTINGS = ("train.batch_size=8", "data.patch=[16,16,16]", "train.max_steps=6")


@pytest.fixture(scope="module")
def pools(two_ranks: RankPool) -> Iterator[dict[int, RankPool]]:
    with RankPool(4) as four:
        yield {2: two_ranks, 4: four}


def one_step(store: Path, root: Path, *overrides: str) -> None:
    """Take up the run, train one step and save it, as a rank that was asked to stop."""
    request_stop()
    train(tiny_config(store, root, *SETTINGS, *overrides))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_losses_are_those_of_a_run_whose_ranks_and_stage_never_changed(
    pools: dict[int, RankPool], tiny_store: Path, tmp_path: Path
) -> None:
    train(tiny_config(tiny_store, tmp_path / "whole", *SETTINGS))
    whole = journal_losses(tmp_path / "whole" / "tiny")
    # Without overlap, stages 1 and 2 reduce gradients in another way.
    plan = [(4, 2, "false"), (2, 3, "true"), (4, 1, "false"), (2, 0, "true"), (4, 3, "true")]
    for ranks, stage, overlaps in plan:
        words = (f"train.zero_stage={stage}", f"train.overlap_comm={overlaps}")
        pools[ranks].run(one_step, tiny_store, tmp_path, *words)
    train(
        tiny_config(tiny_store, tmp_path, *SETTINGS, "train.accumulation=2", "train.zero_stage=2")
    )
    assert journal_losses(tmp_path / "tiny") == pytest.approx(whole, abs=1e-4)
