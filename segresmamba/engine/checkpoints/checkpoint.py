"""Checkpoints that are complete or absent.

    checkpoints/
        step-00000100/              complete: renamed when every rank has written and synced
            meta.json               step, world size, ZeRO stage, dataset, shapes of the weights
            rank-00000.pt           what each rank holds, see `rank_files`
            validation.json         metrics of its validation, once that has ended
        .writing-step-00000200/     incomplete, or left by a killed job; never read

Any number of ranks can continue from one, at any ZeRO stage. Inference does not read checkpoints
but the full weights of the best validation, see `task.weights`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass

from segresmamba.engine.checkpoints.rank_files import absent_ranks, restore_rank, write_rank
from segresmamba.engine.distributed import from_main, wait_for_all
from segresmamba.engine.zero import ZeroEngine
from segresmamba.errors import CheckpointError
from segresmamba.storage.atomic import complete_folder, sync_tree
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.ranks import Ranks
from segresmamba.task.weights import check_shapes


@dataclass(frozen=True)
class Meta:
    """What meta.json says of a checkpoint, and what a job expects of the one that it loads."""

    step: int
    world_size: int
    zero_stage: int
    dataset_digest: str
    shapes: dict[str, list[int]]

    @property
    def layout(self) -> str:
        """How weights and optimizer state are divided, in words."""
        return f"{self.world_size} rank(s) at ZeRO stage {self.zero_stage}"


def save_checkpoint(
    run: RunFolder, engine: ZeroEngine, meta: Meta, ranks: Ranks, keep_last: int
) -> None:
    """Write a checkpoint and delete the oldest ones (collective).

    Args:
        run: The run's folder.
        engine: The engine whose state is written.
        meta: Written into the checkpoint.
        ranks: This process.
        keep_last: Number of complete checkpoints to keep.

    Raises:
        CheckpointError: If the nodes do not write into the same folder.
    """
    final = run.checkpoint(meta.step)
    part = final.with_name(f".writing-{final.name}")
    if from_main(final.exists()):
        return
    if ranks.is_main:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    wait_for_all()
    write_rank(part, engine, ranks)
    wait_for_all()
    if ranks.is_node_main:
        sync_tree(part)  # a node can write only its own data to the disk
    wait_for_all()
    if ranks.is_main:
        if absent := absent_ranks(part, ranks.world_size):
            raise CheckpointError(
                "ranks of other nodes wrote their part of the checkpoint elsewhere",
                where=part,
                got=f"no file of ranks {absent[:8]}",
                remedy="choose a run.root on a file system that all nodes share",
            )
        (part / "meta.json").write_text(json.dumps(asdict(meta)))
        complete_folder(part, final)
        old = [run.checkpoint(step) for step in run.saved_steps()[:-keep_last]]
        for path in [*old, *run.checkpoints.glob(".writing-*")]:
            shutil.rmtree(path)
    wait_for_all()


def load_checkpoint(run: RunFolder, engine: ZeroEngine, meta: Meta, ranks: Ranks) -> Meta:
    """Restore the checkpoint of `meta.step` (collective).

    Args:
        run: The run's folder.
        engine: The engine to restore.
        meta: Describes this job; the checkpoint's world size and ZeRO stage may differ.
        ranks: This process.

    Returns:
        The checkpoint's own description.

    Raises:
        CheckpointError: If it is damaged, or of another architecture or dataset.
    """
    path = run.checkpoint(meta.step)
    try:
        found = Meta(**json.loads((path / "meta.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            "the checkpoint is damaged",
            where=path / "meta.json",
            got=str(error).splitlines()[0],
            remedy="delete this checkpoint: the run goes on from the one before",
        ) from error
    check_shapes(found.shapes, meta.shapes, path)
    if found.dataset_digest != meta.dataset_digest:
        raise CheckpointError(
            "the checkpoint was written with another content of the dataset (data.store)",
            where=path,
            got=f"{meta.dataset_digest}, the checkpoint has {found.dataset_digest}",
            remedy="go on with the same dataset, or start again with another run.name",
        )
    restore_rank(path, engine, ranks, step=found.step, writers=found.world_size)
    return found
