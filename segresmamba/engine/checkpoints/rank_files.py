"""The file that each rank writes into a checkpoint, and how any number of ranks reads them.

`rank-00000.pt` holds the rank's pieces of weights and optimizer state (`engine.sharding`), and the
state that each rank has for itself: buffers, random state, loss scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segresmamba.engine.distributed import send_from_main
from segresmamba.engine.sharding import MOMENTS, ROWS, Piece
from segresmamba.engine.zero import ZeroEngine
from segresmamba.errors import CheckpointError
from segresmamba.storage.atomic import sync
from segresmamba.storage.digest import file_digest
from segresmamba.storage.patience import patiently
from segresmamba.task.ranks import Ranks
from segresmamba.task.weights import first_not_finite, save_torch

RankFiles = Mapping[int, dict[str, Any]]
"""What the files of some ranks hold, by the rank that wrote them."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that is no longer what was written, or that no training can go on from."""


def damaged(where: Path, got: object) -> DamagedCheckpointError:
    """The error to raise when something is wrong with a checkpoint's file or folder."""
    return DamagedCheckpointError(
        "the checkpoint is damaged",
        where=where,
        got=got,
        remedy="bring it back from a copy, or delete this checkpoint: the same command then goes "
        "on from the one before, and without one it starts again",
    )


def snapshot(engine: ZeroEngine) -> dict[str, Any]:
    """Copy to the CPU what this rank saves. The next call overwrites what this one returns.

    The pieces, nearly all of it, are copied beside the training: they are a Future.
    """
    return {
        "pieces": engine.state.copied(),
        "buffers": engine.buffers(),
        "random": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if _uses_gpu() else None,
        },
        "scaler": engine.scaler.state() if engine.scaler else None,
    }


def write_rank(folder: Path, content: Mapping[str, Any], ranks: Ranks) -> str:
    """Write a rank's `snapshot` as its file of a checkpoint, to the disk.

    Returns:
        The digest of the file.

    Raises:
        OSError: If it cannot be written.
    """
    path, pieces = rank_file(folder, ranks.rank), content["pieces"].result()

    def write() -> None:
        save_torch({**content, "pieces": pieces}, path)
        sync(path)  # the disk may turn out to be full here

    patiently(write, path, sum(rows.nbytes for _, rows in pieces.values()))
    return file_digest(path)


def rank_file(folder: Path, rank: int) -> Path:
    """The file of a rank in a checkpoint."""
    return folder / f"rank-{rank:05d}.pt"


def absent_ranks(folder: Path, world_size: int) -> list[int]:
    """Ranks whose file is missing."""
    return [rank for rank in range(world_size) if not rank_file(folder, rank).exists()]


def read_ranks(
    folder: Path,
    ranks: Ranks,
    *,
    writers: int,
    sizes: Mapping[str, int],
    digests: Mapping[str, str],
) -> RankFiles:
    """Read the files that this rank needs to restore its state, and check them.

    The main rank reads all files, so that a large job does not open every file on every rank. Each
    other rank reads the one from which it takes buffers, random state and loss scale: where there
    are more ranks than writers, rank r takes them from rank r modulo their number.

    Args:
        folder: A complete checkpoint.
        ranks: This process.
        writers: Number of ranks that wrote it.
        sizes: Elements of each whole parameter.
        digests: Digest of each file by its name; empty in a checkpoint of an earlier version.

    Raises:
        DamagedCheckpointError: If a file is missing or damaged, or a weight is not finite.
        OSError: If a file cannot be read for another reason.
    """
    needed = range(writers) if ranks.is_main else [ranks.rank % writers]
    files = {rank: _read(rank_file(folder, rank), digests) for rank in needed}
    if ranks.is_main:
        for name, size in sizes.items():
            if not _make_up(_pieces(files.values(), name), size):
                raise damaged(folder, f"the ranks' pieces do not make up {name}")
    return files


def restore_ranks(files: RankFiles, engine: ZeroEngine, ranks: Ranks, *, step: int) -> None:
    """Restore the state that some number of ranks wrote (collective).

    The main rank sends one parameter after the other, so that a rank needs memory for its own
    pieces and for one whole parameter.

    Args:
        files: What `read_ranks` gave this rank.
        engine: The engine to restore, at any ZeRO stage.
        ranks: This process.
        step: Optimizer steps that were made.
    """
    engine.state.restore(_wholes(files, engine, ranks), step)
    own = next(iter(files.values()))
    engine.network.load_state_dict(own["buffers"], strict=False)
    if engine.scaler and own["scaler"]:
        engine.scaler.restore(own["scaler"])
    torch.set_rng_state(own["random"]["cpu"].clone())
    if own["random"]["cuda"] is not None and _uses_gpu():
        torch.cuda.set_rng_state(own["random"]["cuda"].clone())


def _uses_gpu() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def load_weights(files: RankFiles, network: nn.Module) -> None:
    """Fill a network, which is on no engine, from the files of all ranks."""
    for name, parameter in network.named_parameters():
        flat_N = parameter.data.view(-1)
        for start, piece_3n in _pieces(files.values(), name):
            flat_N[start : start + piece_3n.shape[1]] = piece_3n[0]
    buffers = dict(network.named_buffers())
    own = next(iter(files.values()))["buffers"]
    network.load_state_dict({name: own[name] for name in own if name in buffers}, strict=False)


def _wholes(files: RankFiles, engine: ZeroEngine, ranks: Ranks) -> Iterator[tuple[str, Tensor]]:
    """Each parameter's name and its rows (3, N), put together from the ranks' pieces."""
    for name, size in engine.sizes.items():
        rows_3N = torch.empty(ROWS, size)
        if ranks.is_main:
            for start, piece_3n in _pieces(files.values(), name):
                rows_3N[:, start : start + piece_3n.shape[1]] = piece_3n
        rows_3N = rows_3N.to(ranks.device)
        send_from_main(rows_3N)
        yield name, rows_3N


def _pieces(files: Iterable[Mapping[str, Any]], name: str) -> list[Piece]:
    return [file["pieces"][name] for file in files if name in file["pieces"]]


def _make_up(pieces: list[Piece], size: int) -> bool:
    """Whether the pieces follow one another from the first element to the last."""
    end = 0
    for start, piece_3n in sorted(pieces, key=lambda piece: (piece[0], piece[1].shape[1])):
        if start != end or piece_3n.shape[0] != ROWS:
            return False
        end += piece_3n.shape[1]
    return end == size


def _read(path: Path, digests: Mapping[str, str]) -> dict[str, Any]:
    try:
        found = file_digest(path)
    except FileNotFoundError as error:
        raise damaged(path, "the file is missing") from error
    if digests and found != digests.get(path.name):
        raise damaged(path, f"checksum {found}, written with {digests.get(path.name)}")
    try:
        content: dict[str, Any] = torch.load(path, "cpu", weights_only=True, mmap=True)
        broken = first_not_finite(_tensors(content))
    except Exception as error:  # torch raises whatever the damaged bytes provoke
        raise damaged(path, (str(error).splitlines() or [type(error).__name__])[0]) from error
    if broken is not None:
        raise damaged(path, f"{broken} is not finite")
    return content


def _tensors(content: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Name and values of what a rank has of each weight, of its moments, and of buffers."""
    for name, (_, piece_3n) in content["pieces"].items():
        for row, values in zip(("weight", *MOMENTS), piece_3n, strict=True):
            yield (name if row == "weight" else f"{row} of {name}"), values
    yield from content["buffers"].items()
