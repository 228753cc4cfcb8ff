"""The file that each rank writes into a checkpoint, and how any number of ranks reads them.

`rank-00000.pt` holds the rank's pieces of weights and optimizer state (`engine.sharding`), and the
state that each rank has for itself: buffers, random state, loss scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segresmamba.engine.distributed import send_from_main
from segresmamba.engine.sharding import ROWS, Piece
from segresmamba.engine.zero import ZeroEngine
from segresmamba.errors import CheckpointError
from segresmamba.task.ranks import Ranks


def write_rank(folder: Path, engine: ZeroEngine, ranks: Ranks) -> None:
    """Write this rank's file of a checkpoint."""
    content = {
        "pieces": engine.state.pieces(),
        "buffers": engine.buffers(),
        "random": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        },
        "scaler": engine.scaler.state() if engine.scaler else None,
    }
    torch.save(content, _path(folder, ranks.rank))


def absent_ranks(folder: Path, world_size: int) -> list[int]:
    """Ranks whose file is missing."""
    return [rank for rank in range(world_size) if not _path(folder, rank).exists()]


def restore_rank(
    folder: Path, engine: ZeroEngine, ranks: Ranks, *, step: int, writers: int
) -> None:
    """Restore the state that some number of ranks wrote (collective).

    The main rank reads the pieces, so that a large job does not open every file on every rank. It
    sends one parameter after the other, so that a rank needs memory for its own pieces and for one
    whole parameter.

    Args:
        folder: A complete checkpoint.
        engine: The engine to restore, at any ZeRO stage.
        ranks: This process.
        step: The checkpoint's step.
        writers: Number of ranks that wrote it. Where there are more ranks now, rank r takes
            buffers, random state and loss scale of rank r modulo this number.

    Raises:
        CheckpointError: If a file is missing or damaged.
    """
    files = [_read(folder, rank) for rank in range(writers)] if ranks.is_main else []
    engine.state.restore(_wholes(files, engine, ranks), step)
    own = _read(folder, ranks.rank % writers)
    engine.network.load_state_dict(own["buffers"], strict=False)
    if engine.scaler and own["scaler"]:
        engine.scaler.restore(own["scaler"])
    torch.set_rng_state(own["random"]["cpu"].clone())
    if own["random"]["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["random"]["cuda"].clone())


def _wholes(
    files: Sequence[dict[str, Any]], engine: ZeroEngine, ranks: Ranks
) -> Iterator[tuple[str, Tensor]]:
    """Each parameter's name and its rows (3, N), put together from the ranks' pieces."""
    for name, size in engine.sizes.items():
        rows_3N = torch.empty(ROWS, size)
        if ranks.is_main:
            pieces: list[Piece] = [file["pieces"][name] for file in files if name in file["pieces"]]
            assert sum(piece_3n.shape[1] for _, piece_3n in pieces) == size
            for start, piece_3n in pieces:
                rows_3N[:, start : start + piece_3n.shape[1]] = piece_3n
        rows_3N = rows_3N.to(ranks.device)
        send_from_main(rows_3N)
        yield name, rows_3N


def _read(folder: Path, rank: int) -> dict[str, Any]:
    path = _path(folder, rank)
    try:
        content: dict[str, Any] = torch.load(path, "cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever the damaged bytes provoke
        raise CheckpointError(
            "a rank's part of the checkpoint cannot be read",
            where=path,
            got=(str(error).splitlines() or [type(error).__name__])[0],
            remedy="delete this checkpoint: the run goes on from the one before",
        ) from error
    return content


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.pt"
