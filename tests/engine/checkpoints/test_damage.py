"""Damaged checkpoints: found by their digests, skipped on all ranks, kept aside, never trained on.

`test_trainer` has whole trainings; here a tiny network is saved and taken up without a dataset.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from segresmamba.engine.checkpoints import checkpoint, rank_files
from segresmamba.engine.checkpoints.checkpoint import Checkpoints, Meta, load_newest
from segresmamba.engine.checkpoints.rank_files import DamagedCheckpointError
from segresmamba.engine.distributed import join
from segresmamba.engine.zero import ZeroEngine
from segresmamba.errors import PASSING_CODE, CheckpointError, sort_error
from segresmamba.models import SegResMamba
from segresmamba.storage.digest import file_digest, json_digest
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.ranks import Ranks
from segresmamba.task.weights import shapes_of
from tests.damage import cut, flip, flips, lose
from tests.engine.ranks import RankPool
from tests.engine.tiny import tiny_config

FLIPS = 100
RANK_0, RANK_1 = "rank-00000.pt", "rank-00001.pt"

Resumed = tuple[int, dict[str, str], float]
"""Step, what is wrong with the checkpoints that were skipped, sum of all weights."""


def new_engine(root: Path) -> tuple[ZeroEngine, Meta, Ranks]:
    ranks = Ranks.from_environment()
    join(ranks, threads=1)
    torch.manual_seed(0)
    network = SegResMamba(dims=(8, 8), d_state=4)
    shapes = shapes_of(network)
    engine = ZeroEngine(network, tiny_config(root, root, "train.zero_stage=2"), ranks)
    return engine, Meta(0, ranks.world_size, 2, "digest", shapes), ranks


def total(engine: ZeroEngine) -> float:
    return sum(float(weight.double().sum()) for weight in engine.weights().values())


def saved(root: Path, steps: Sequence[int]) -> dict[int, float]:
    """Save a checkpoint at each of these steps; gives the sum of all weights in each."""
    engine, meta, ranks = new_engine(root)
    checkpoints, sums = Checkpoints(RunFolder(root), ranks, 2, lambda: None), {}
    for step in steps:
        logits = engine.forward(torch.randn(2 // ranks.world_size, 1, 16, 16, 16))
        assert isinstance(logits, torch.Tensor)
        engine.backward(logits.square().mean(), 1e-2)
        checkpoints.save(engine, replace(meta, step=step))
        sums[step] = total(engine)
    checkpoints.go_on(wait=True)
    return sums


def resumed(root: Path) -> Resumed:
    engine, meta, ranks = new_engine(root)
    found = load_newest(RunFolder(root), engine, meta, ranks)
    assert found is not None
    return found.meta.step, {k: str(error) for k, error in found.skipped.items()}, total(engine)


def refused(root: Path) -> str:
    with pytest.raises(CheckpointError) as refusal:
        resumed(root)
    return refusal.value.screen()


def refused_by_one_rank(root: Path) -> Resumed:
    """As if rank 1 alone read other bytes than those on the disk."""
    read = rank_files._read

    def unlucky(path: Path, digests: Any) -> Any:
        if os.environ["RANK"] == "1" and path.parent.name == "step-00000004":
            raise rank_files.damaged(path, "the cable is loose")
        return read(path, digests)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_files, "_read", unlucky)
        return resumed(root)


def sign(folder: Path) -> None:
    """Give a checkpoint the digests of what it holds now."""
    path = folder / "meta.json"
    meta = json.loads(path.read_text())
    meta["digests"] = {name: file_digest(folder / name) for name in meta["digests"]}
    del meta["digest"]
    path.write_text(json.dumps(meta | {"digest": json_digest(meta)}))


def poison(folder: Path, row: int) -> str:
    """Put a NaN among the weights (row 0) or the moments, with digests that fit."""
    path = folder / RANK_0
    content = torch.load(path, weights_only=True)
    name = list(content["pieces"])[2]
    content["pieces"][name][1][row, 0] = float("nan")
    torch.save(content, path)
    sign(folder)
    return name


def strip_digests(folder: Path) -> None:
    """Make a checkpoint look as earlier versions wrote it."""
    path = folder / "meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({key: meta[key] for key in meta if not key.startswith("digest")}))


@pytest.mark.parametrize(
    ("file", "damage"),
    [(RANK_0, flip), (RANK_1, flip), (RANK_1, cut), (RANK_0, lose), ("meta.json", flip),
     ("meta.json", cut), ("meta.json", lose)],
)  # fmt: skip
def test_two_ranks_skip_a_damaged_checkpoint_together(
    two_ranks: RankPool, tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    sums = two_ranks.run(saved, tmp_path, (2, 4))[0]
    damage(tmp_path / "checkpoints" / "step-00000004" / file)
    first, second = two_ranks.run(resumed, tmp_path)
    assert first == second
    assert (first[0], list(first[1])) == (2, ["step-00000004.damaged"])
    assert file in first[1]["step-00000004.damaged"]
    assert first[2] == pytest.approx(sums[2], abs=1e-6)
    assert RunFolder(tmp_path).saved_steps() == [2]


def test_damage_that_one_rank_finds_is_told_to_the_other(
    two_ranks: RankPool, tmp_path: Path
) -> None:
    two_ranks.run(saved, tmp_path, (2, 4))
    first, second = two_ranks.run(refused_by_one_rank, tmp_path)
    assert first == second
    assert first[0] == 2
    assert "the cable is loose" in first[1]["step-00000004.damaged"]


def test_two_ranks_stop_where_no_checkpoint_is_sound_and_leave_them_all(
    two_ranks: RankPool, tmp_path: Path
) -> None:
    two_ranks.run(saved, tmp_path, (2, 4))
    folder = tmp_path / "checkpoints"
    flip(folder / "step-00000002" / RANK_1)
    cut(folder / "step-00000004" / "meta.json")
    for _ in range(2):  # the second start must not begin at step 0 without a word
        first, second = two_ranks.run(refused, tmp_path)
        assert first == second
        assert f"step-00000002/{RANK_1}" in first
        assert "step-00000004/meta.json" in first
    assert RunFolder(tmp_path).saved_steps() == [2, 4]


@pytest.mark.parametrize(("row", "prefix"), [(0, ""), (2, "exp_avg_sq of ")])
def test_weights_and_moments_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, row: int, prefix: str
) -> None:
    saved(tmp_path, (2, 4))
    folder = tmp_path / "checkpoints"
    name = poison(folder / "step-00000004", row)
    step, skipped, _ = resumed(tmp_path)
    assert step == 2
    assert f"{prefix}{name} is not finite" in skipped["step-00000004.damaged"]
    poison(folder / "step-00000002", row)
    assert f"{prefix}{name} is not finite" in refused(tmp_path)


def test_checkpoints_set_aside_are_not_pruned(tmp_path: Path) -> None:
    saved(tmp_path, (2, 4))
    flip(tmp_path / "checkpoints" / "step-00000004" / RANK_0)
    resumed(tmp_path)
    saved(tmp_path, (6, 8, 10))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004.damaged", "step-00000008", "step-00000010"]


def test_a_checkpoint_without_digests_is_read_and_its_damage_skipped(tmp_path: Path) -> None:
    sums = saved(tmp_path, (2, 4))
    for step in (2, 4):
        strip_digests(RunFolder(tmp_path).checkpoint(step))
    step, skipped, found = resumed(tmp_path)
    assert (step, skipped) == (4, {})
    assert found == pytest.approx(sums[4], abs=1e-6)
    cut(RunFolder(tmp_path).checkpoint(4) / RANK_0)
    assert resumed(tmp_path)[0] == 2


def test_a_checkpoint_under_the_name_of_another_step_is_skipped(tmp_path: Path) -> None:
    saved(tmp_path, (2, 4))
    run = RunFolder(tmp_path)
    run.checkpoint(4).rename(run.checkpoint(6))
    step, skipped, _ = resumed(tmp_path)
    assert step == 2
    assert "it is of step 4" in skipped["step-00000006.damaged"]


@pytest.mark.parametrize(
    "change",
    [{"shapes": [{"a": [1]}]}, {"digests": ["crc"]}, {"world_size": 0}, {"step": "x"}, {"new": 1}],
)
def test_an_absurd_description_whose_checksum_fits_is_damaged(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    content = asdict(Meta(4, 2, 0, "digest", {"a": [1]}, {RANK_0: "crc"})) | change
    sealed = content | {"digest": json_digest(content)}
    (tmp_path / "meta.json").write_text(json.dumps(sealed))
    with pytest.raises(DamagedCheckpointError, match=r"meta\.json"):
        checkpoint._read_meta(tmp_path, 4)


def test_a_file_that_cannot_be_read_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, (2, 4))

    def stale(path: Path) -> str:
        raise OSError(116, "Stale file handle", str(path))

    monkeypatch.setattr(rank_files, "file_digest", stale)
    with pytest.raises(OSError, match="Stale file handle"):
        resumed(tmp_path)
    assert RunFolder(tmp_path).saved_steps() == [2, 4]


def test_no_flipped_bit_of_a_rank_file_is_loaded(tmp_path: Path) -> None:
    saved(tmp_path, (2,))
    engine, meta, ranks = new_engine(tmp_path)
    run = RunFolder(tmp_path)
    for _ in flips(run.checkpoint(2) / RANK_0, FLIPS):
        with pytest.raises(CheckpointError, match=RANK_0):
            load_newest(run, engine, meta, ranks)
    assert load_newest(run, engine, meta, ranks) is not None


def test_no_flipped_bit_of_a_description_is_loaded_with_other_content(tmp_path: Path) -> None:
    saved(tmp_path, (2,))
    path = RunFolder(tmp_path).checkpoint(2)
    good = checkpoint._read_meta(path, 2)
    for place in flips(path / "meta.json", FLIPS):
        with contextlib.suppress(CheckpointError):
            assert checkpoint._read_meta(path, 2) == good, place


def test_a_checkpoint_that_this_node_does_not_see_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = tmp_path / "meta.json"
    writer = threading.Timer(0.3, meta.touch)
    writer.start()
    checkpoint._wait_until_seen(meta)
    writer.join()
    meta.unlink()
    # It is no damage, for which the checkpoint would be given up.
    monkeypatch.setattr(checkpoint, "STALE_PATIENCE_S", 0.0)
    with pytest.raises(OSError, match="this one does not") as caught:
        checkpoint._wait_until_seen(meta)
    assert sort_error(caught.value).exit_code == PASSING_CODE
