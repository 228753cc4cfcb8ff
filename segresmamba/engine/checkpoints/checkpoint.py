"""Checkpoints that are whole or not there.

    checkpoints/
        step-00000100/              complete: renamed once every rank has written and synced
            meta.json               step, world size, ZeRO stage, dataset, shapes of the weights
            rank-00000.pt           what each rank holds, see engine.rank_files
            validation.json         its validation, once that has ended
        .writing-step-00000200/     under way, or left by a killed job; never read

Any number of ranks at any ZeRO stage goes on from it. Full weights for inference are one file,
`best/weights.pt`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segresmamba.engine.checkpoints.rank_files import absent_ranks, restore_rank, write_rank
from segresmamba.engine.distributed import Ranks, from_main, wait_for_all
from segresmamba.engine.zero import ZeroEngine
from segresmamba.errors import CheckpointError

_PREFIX = "step-"
_NAME = re.compile(_PREFIX + r"\d{8}")


@dataclass(frozen=True)
class Meta:
    """What a checkpoint says about itself."""

    step: int
    world_size: int
    zero_stage: int
    dataset_digest: str
    shapes: dict[str, list[int]]

    @property
    def layout(self) -> str:
        """How weights and optimizer state are shared out."""
        return f"{self.world_size} rank(s) at ZeRO stage {self.zero_stage}"


def shapes_of(network: nn.Module) -> dict[str, list[int]]:
    """Names and shapes of a network's weights: the architecture's identity."""
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def latest_step(folder: Path) -> int | None:
    """The newest complete checkpoint's step, or None."""
    return max((int(path.name.removeprefix(_PREFIX)) for path in _complete(folder)), default=None)


def save_checkpoint(
    folder: Path, engine: ZeroEngine, meta: Meta, ranks: Ranks, keep_last: int
) -> None:
    """Write a checkpoint (collective): temporary name, all ranks, sync, rename, prune.

    Args:
        folder: The run's checkpoints folder.
        engine: The engine whose state is written.
        meta: What the checkpoint says about itself.
        ranks: This process.
        keep_last: Number of complete checkpoints to keep.

    Raises:
        CheckpointError: If the nodes do not write into the same folder.
    """
    final = folder / f"{_PREFIX}{meta.step:08d}"
    part = folder / f".writing-{final.name}"
    if from_main(final.exists()):
        return
    if ranks.is_main:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    wait_for_all()
    write_rank(part, engine, ranks)
    wait_for_all()
    if ranks.is_node_main:
        _sync(part)
    wait_for_all()
    if ranks.is_main:
        _require_all_ranks(part, ranks.world_size)
        (part / "meta.json").write_text(json.dumps(asdict(meta)))
        _sync(part)
        part.rename(final)
        _sync(folder)
        _prune(folder, keep_last)
    wait_for_all()


def load_checkpoint(folder: Path, engine: ZeroEngine, meta: Meta, ranks: Ranks) -> Meta:
    """Restore the checkpoint of `meta.step` (collective).

    Args:
        folder: The run's checkpoints folder.
        engine: The engine to restore.
        meta: What this job is; world size and ZeRO stage may be others than the checkpoint's.
        ranks: This process.

    Returns:
        What the checkpoint says about itself.

    Raises:
        CheckpointError: If it is damaged, or of another architecture or dataset.
    """
    path = folder / f"{_PREFIX}{meta.step:08d}"
    found = _read_meta(path)
    check_shapes(found.shapes, meta.shapes, path)
    if found.dataset_digest != meta.dataset_digest:
        raise CheckpointError(
            "the checkpoint was written with another content of the dataset (data.store)",
            where=path,
            got=f"{meta.dataset_digest}, the checkpoint has {found.dataset_digest}",
            remedy="go on with the same dataset, or start anew with another run.name",
        )
    restore_rank(path, engine, ranks, step=found.step, writers=found.world_size)
    return found


def validation_file(folder: Path, step: int) -> Path:
    """Where the validation of a checkpoint's step is recorded."""
    return folder / f"{_PREFIX}{step:08d}" / "validation.json"


def check_shapes(
    found: Mapping[str, list[int]], expected: Mapping[str, list[int]], where: Path
) -> None:
    """Refuse weights of another architecture.

    Raises:
        CheckpointError: Names the first weights that differ.
    """
    different = [
        f"{name}: {found.get(name, 'absent')} in the checkpoint, "
        f"{expected.get(name, 'absent')} in the network"
        for name in dict.fromkeys([*expected, *found])
        if found.get(name) != expected.get(name)
    ]
    if different:
        raise CheckpointError(
            f"the checkpoint holds another architecture ({len(different)} weights differ)",
            where=where,
            got="; ".join(different[:3]),
            remedy="use the model settings it was trained with, or another run.name",
        )


def save_weights(path: Path, weights: Mapping[str, Tensor], **facts: Any) -> None:
    """Write full weights and a few plain facts about them, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save({"weights": dict(weights), **facts}, part)
    _sync(part.parent)
    part.replace(path)


def read_facts(path: Path) -> dict[str, Any]:
    """The facts that were saved beside full weights.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    content = _read_weights_file(path)
    del content["weights"]
    return content


def load_weights(path: Path, network: nn.Module) -> dict[str, Any]:
    """Load full weights into a network.

    Returns:
        The facts that were saved beside the weights.

    Raises:
        CheckpointError: If the file is missing, damaged, or of another architecture.
    """
    content = _read_weights_file(path)
    weights: dict[str, Tensor] = content.pop("weights")
    check_shapes({name: list(w.shape) for name, w in weights.items()}, shapes_of(network), path)
    network.load_state_dict(weights)
    return content


def _read_weights_file(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        content["weights"]
    except Exception as error:  # torch raises whatever the damaged bytes provoke
        raise CheckpointError(
            "the weights cannot be read",
            where=path,
            got=(str(error).splitlines() or [type(error).__name__])[0],
            remedy="name a run that has finished a validation; the same training command goes on "
            "from the last checkpoint and validates (delete the file if it is damaged)",
        ) from error
    return content


def _read_meta(path: Path) -> Meta:
    try:
        return Meta(**json.loads((path / "meta.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            "the checkpoint is damaged",
            where=path / "meta.json",
            got=str(error).splitlines()[0],
            remedy="delete this checkpoint: the run goes on from the one before",
        ) from error


def _require_all_ranks(part: Path, world_size: int) -> None:
    absent = absent_ranks(part, world_size)
    if absent:
        raise CheckpointError(
            "ranks of other nodes wrote their part of the checkpoint elsewhere",
            where=part,
            got=f"nothing of ranks {absent[:8]}",
            remedy="choose a run.root on a file system that all nodes share",
        )


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if _NAME.fullmatch(path.name))


def _sync(folder: Path) -> None:
    """Have the bytes on disk before a name says that they are."""
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _prune(folder: Path, keep_last: int) -> None:
    for path in [*_complete(folder)[:-keep_last], *folder.glob(".writing-*")]:
        shutil.rmtree(path)
