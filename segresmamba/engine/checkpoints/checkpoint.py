"""Checkpoints that are complete or absent.

    checkpoints/
        step-00000100/              complete: renamed when every rank has written and synced
            meta.json               step, world size, ZeRO stage, dataset, shapes of the weights,
                                    digests of the rank files and of itself
            rank-00000.pt           what each rank holds, see `rank_files`
            validation.json         metrics of its validation, once that has ended
        .writing-step-00000200/     incomplete, or left by a killed job; never read
        step-00000300.damaged/      kept aside when a run went on from the one before; never read

Any number of ranks can continue from one, at any ZeRO stage. Every byte is checked before a run
goes on: a checkpoint that is damaged, or whose weights are not finite, is skipped. Inference does
not read checkpoints but the full weights of the best validation, see `task.weights`.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from segresmamba.engine.checkpoints.rank_files import (
    DamagedCheckpointError,
    RankFiles,
    absent_ranks,
    damaged,
    load_weights,
    rank_file,
    read_ranks,
    restore_ranks,
    snapshot,
    write_rank,
)
from segresmamba.engine.distributed import agree, from_main, gather, highest, wait_for_all
from segresmamba.engine.zero import ZeroEngine
from segresmamba.errors import CheckpointError
from segresmamba.storage.atomic import complete_folder, write_text
from segresmamba.storage.digest import json_digest
from segresmamba.storage.json_text import parse_json
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.ranks import Ranks
from segresmamba.task.weights import check_shapes, shapes_of

logger = logging.getLogger(__name__)

_META = "meta.json"
# A node may go on seeing an older listing of a folder for NFS's acdirmax, by default 60 s.
STALE_PATIENCE_S = 90.0


@dataclass(frozen=True)
class Meta:
    """What meta.json says of a checkpoint, and what a job expects of the one that it loads."""

    step: int
    world_size: int
    zero_stage: int
    dataset_digest: str
    shapes: dict[str, list[int]]
    digests: dict[str, str] = field(default_factory=dict)
    """Digest of each rank file by its name; empty in a checkpoint of an earlier version."""
    skipped: int = 0
    """How many of the steps changed nothing, see `engine.skipped_steps`."""
    skipped_in_a_row: int = 0
    """How many of these were the last ones."""

    @property
    def layout(self) -> str:
        """How weights and optimizer state are divided, in words."""
        return f"{self.world_size} rank(s) at ZeRO stage {self.zero_stage}"


class Checkpoints:
    """Saves the checkpoints of a run while it trains on, one checkpoint after the other.

    What a rank holds is copied beside the next forward pass (`sharding`), and a thread writes it.
    When all ranks have agreed that they have written, the thread of the main rank completes the
    checkpoint. Collective calls are made by the training's own thread alone, so it has to
    call `go_on` now and then. A checkpoint
    counts once it is renamed: a kill before that loses this checkpoint alone.

    Both methods are collective. An error in the thread of one rank is raised on all ranks, by the
    call that learns of it: CheckpointError if the nodes do not write into the same folder, OSError
    or RuntimeError (from torch) if a file cannot be written.

    Args:
        run: The run's folder.
        ranks: This process.
        keep_last: Number of complete checkpoints to keep.
        flush: Writes to disk what was recorded of the run, before a checkpoint counts.
    """

    def __init__(
        self, run: RunFolder, ranks: Ranks, keep_last: int, flush: Callable[[], None]
    ) -> None:
        self._run, self._ranks, self._keep_last, self._flush = run, ranks, keep_last, flush
        # While torch and the disk write, a thread does not hold the interpreter's lock.
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Any] | None = None
        self._meta: Meta | None = None
        """The checkpoint whose files are being written; None while it is being completed."""

    def save(self, engine: ZeroEngine, meta: Meta) -> None:
        """Wait for the checkpoint before, copy the engine's state, and begin to write it.

        Args:
            engine: The engine whose state is written.
            meta: Written into the checkpoint.
        """
        self.go_on(wait=True)
        final = self._run.checkpoint(meta.step)
        if from_main(final.exists()):
            return
        part = _part(final)
        if self._ranks.is_main:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        wait_for_all()
        self._meta = meta
        self._pending = self._thread.submit(write_rank, part, snapshot(engine), self._ranks)

    def go_on(self, *, wait: bool) -> None:
        """Complete the checkpoint that is being written, as far as all ranks are ready for it.

        Args:
            wait: Return only when it is complete.
        """
        while self._pending:
            if not wait and highest(int(not self._pending.done()), self._ranks.device):
                return
            pending, self._pending = self._pending, None
            digests = gather(agree(pending.result, self._ranks), self._ranks)
            if self._meta:
                names = [rank_file(Path(), rank).name for rank in range(len(digests))]
                meta = replace(self._meta, digests=dict(zip(names, digests, strict=True)))
                self._meta = None
                self._pending = self._thread.submit(self._complete, meta)

    def _complete(self, meta: Meta) -> None:
        final = self._run.checkpoint(meta.step)
        if not self._ranks.is_main:
            return
        part = _part(final)
        if absent := absent_ranks(part, self._ranks.world_size):
            raise CheckpointError(
                "ranks of other nodes wrote their part of the checkpoint elsewhere",
                where=part,
                got=f"no file of ranks {absent[:8]}",
                remedy="choose a run.root on a file system that all nodes share",
            )
        _write_meta(part, meta)
        self._flush()
        complete_folder(part, final)
        old = [self._run.checkpoint(step) for step in self._run.saved_steps()[: -self._keep_last]]
        for path in [*old, *self._run.checkpoints.glob(".writing-*")]:
            shutil.rmtree(path)


def _part(final: Path) -> Path:
    return final.with_name(f".writing-{final.name}")


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run goes on from."""

    meta: Meta
    skipped: Mapping[str, DamagedCheckpointError]
    """What is wrong with each newer checkpoint, by the name under which it is kept aside."""


def load_newest(run: RunFolder, engine: ZeroEngine, expected: Meta, ranks: Ranks) -> Resumed | None:
    """Restore the newest checkpoint that is sound, and set damaged newer ones aside (collective).

    Nothing is renamed unless a sound one is found: otherwise the next start would find none at all
    and train from the beginning without a word.

    Args:
        run: The run's folder.
        engine: The engine to restore.
        expected: Describes this job; the checkpoint's step, world size and ZeRO stage may differ.
        ranks: This process.

    Returns:
        None if the run has no checkpoint.

    Raises:
        CheckpointError: If none is sound, or the newest sound one is of another network or dataset.
        OSError: If a file cannot be read, but is not known to be damaged.
    """
    # Only one rank looks: on a shared file system others may still see an older listing.
    steps = from_main(run.saved_steps() if ranks.is_main else [])
    unsound: dict[int, DamagedCheckpointError] = {}
    for step in reversed(steps):
        try:
            found, files = _examined_by_all(run.checkpoint(step), step, engine, expected, ranks)
        except DamagedCheckpointError as error:
            unsound[step] = error
            continue
        skipped = from_main(_set_aside(run, unsound, step) if ranks.is_main else {})
        restore_ranks(files, engine, ranks, step=step - found.skipped)
        return Resumed(found, skipped)
    if unsound:
        raise CheckpointError(
            f"the run has {len(unsound)} checkpoint(s), and none of them is sound",
            where=run.checkpoints,
            got="; ".join(f"{error.where}: {error.got}" for error in unsound.values()),
            remedy="bring one back from a copy; or delete them all, and the same command starts "
            "again at step 0",
        )
    return None


def load_into(network: nn.Module, run: RunFolder, step: int) -> Meta:
    """Load the weights of a checkpoint into a network that is on no engine.

    Args:
        network: Of the run's architecture, on the CPU.
        run: The run's folder.
        step: Of a checkpoint that is there.

    Returns:
        What the checkpoint says of itself.

    Raises:
        CheckpointError: If it is damaged, or of another architecture.
    """
    path = run.checkpoint(step)
    found = _read_meta(path, step)
    check_shapes(found.shapes, shapes_of(network), path)
    alone = Ranks(0, 1, 0, 1, torch.device("cpu"))
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    files = read_ranks(path, alone, writers=found.world_size, sizes=sizes, digests=found.digests)
    load_weights(files, network)
    return found


def _examined_by_all(
    path: Path, step: int, engine: ZeroEngine, expected: Meta, ranks: Ranks
) -> tuple[Meta, RankFiles]:
    """Read a checkpoint and check it on all ranks; if one refuses it, all do (collective)."""
    is_there = from_main((path / _META).exists() if ranks.is_main else False)

    def examined() -> tuple[Meta, RankFiles]:
        if is_there:
            _wait_until_seen(path / _META)
        found = _read_meta(path, step)
        check_shapes(found.shapes, expected.shapes, path)
        if found.dataset_digest != expected.dataset_digest:
            raise CheckpointError(
                "the checkpoint was written with another content of the dataset (data.store)",
                where=path,
                got=f"{expected.dataset_digest}, the checkpoint has {found.dataset_digest}",
                remedy="go on with the same dataset, or start again with another run.name",
            )
        files = read_ranks(
            path, ranks, writers=found.world_size, sizes=engine.sizes, digests=found.digests
        )
        return found, files

    return agree(examined, ranks)


def _wait_until_seen(path: Path) -> None:
    """Wait for a file that the first rank sees, and that this rank's node may not see yet.

    Raises:
        OSError: If it stays away. Then the node is at fault, not the checkpoint.
    """
    deadline = time.monotonic() + STALE_PATIENCE_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise OSError(errno.ESTALE, "the first rank sees this file, this one does not", path)
        time.sleep(0.2)


def _set_aside(
    run: RunFolder, unsound: Mapping[int, DamagedCheckpointError], sound: int
) -> dict[str, DamagedCheckpointError]:
    skipped = {run.set_aside(step).name: error for step, error in unsound.items()}
    for (step, error), name in zip(unsound.items(), skipped, strict=True):
        logger.error(
            "the checkpoint of step %d cannot be used (%s: %s) and is kept aside as %s; "
            "going on from step %d, the steps after it are trained again",
            *(step, error.where, error.got, name, sound),
        )
    return skipped


def _write_meta(folder: Path, meta: Meta) -> None:
    content = asdict(meta)
    text = json.dumps(content | {"digest": json_digest(content)})
    write_text(folder / _META, text)


def _read_meta(folder: Path, step: int) -> Meta:
    path = folder / _META
    try:
        content = parse_json(path.read_bytes())
        digest = content.pop("digest", None)
        Meta(**content)  # refuses keys that this version does not know
        meta = TypeAdapter(Meta).validate_python(content)
    except FileNotFoundError as error:
        raise damaged(path, "the file is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise damaged(path, " ".join(str(error).split())[:200] or "not an object") from error
    # Earlier versions wrote no digests.
    if (digest or meta.digests) and digest != json_digest(content):
        raise damaged(path, f"checksum {json_digest(content)}, written with {digest}")
    if meta.step != step or meta.world_size < 1:
        raise damaged(path, f"it is of step {meta.step}, by {meta.world_size} ranks")
    return meta
