"""What is kept and said when memory runs out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from segresmamba.errors import ConfigError, UserError
from segresmamba.planner import Planner, gpu_memory_gib, verdict
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import Task
from segresmamba.tracking import PhaseMemory

logger = logging.getLogger(__name__)


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or says_ran_out(str(error))


def says_ran_out(text: str) -> bool:
    """Whether a message, of whatever library, says that memory ran out."""
    return any(words in text for words in ("can't allocate memory", "bad_alloc", "out of memory"))


def out_of_memory(
    error: BaseException, task: Task, ranks: Ranks, logs: Path, memory: PhaseMemory
) -> UserError:
    """Write a snapshot of the memory and say what to do.

    Args:
        error: What was raised.
        task: What was trained.
        ranks: This process.
        logs: Folder of the snapshot; created.
        memory: The peaks so far.
    """
    snapshot = logs / f"out-of-memory-rank-{ranks.rank}.json"
    advice = _advice(task)
    try:
        _write_snapshot(snapshot, error, ranks, memory, advice)
    except (OSError, RuntimeError) as problem:  # the first error is the one to report
        logger.error("no memory snapshot: %s", problem)
    config, train = task.config, task.config.train
    where = "the GPU" if ranks.device.type == "cuda" else "this machine"
    return UserError(
        f"{where} ran out of memory in the phase {memory.phase!r} on rank {ranks.rank}",
        where=snapshot,
        got=f"data.patch={list(config.data.patch)}, train.batch_size={train.batch_size}, "
        f"train.accumulation={train.accumulation}, train.precision={train.precision}, "
        f"train.zero_stage={train.zero_stage}: {str(error).splitlines()[0]}",
        remedy=f"{advice}; less memory is taken by more train.accumulation, a smaller data.patch "
        "or batch, train.precision=bf16, and a higher train.zero_stage on several GPUs",
    )


def _advice(task: Task) -> str:
    """What the planner says of these settings on this GPU, or how to ask it."""
    ask = "`segresmamba plan`, with the same settings, says what fits"
    try:
        memory_gib = gpu_memory_gib(task.config)
    except ConfigError:  # there is no GPU to plan for
        return ask
    try:
        plan = Planner(task).plan(memory_gib)
        words = verdict(plan) + (", if nothing else is on it" if plan.fits else "")
    except UserError as refusal:
        words = f"{refusal.problem} ({refusal.got}): {refusal.remedy}"
    except (MemoryError, RuntimeError) as problem:  # the first error is the one to report
        logger.error("the planner cannot say what fits: %s", problem)
        return ask
    return f"the planner, for a GPU of {memory_gib:.4g} GiB: {words}"


def _write_snapshot(
    path: Path, error: BaseException, ranks: Ranks, memory: PhaseMemory, advice: str
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "rank": ranks.rank,
        "device": str(ranks.device),
        "phase": memory.phase,
        "error": str(error),
        "peaks": memory.peaks(),
        "advice": advice,
    }
    if ranks.device.type == "cuda":
        content["allocator"] = torch.cuda.memory_stats(ranks.device)
        # Every block of the allocator, for https://docs.pytorch.org/memory_viz
        dump: Callable[[str], None] = torch.cuda.memory._dump_snapshot
        dump(str(path.with_suffix(".pickle")))
    part = path.with_name(f".part-{path.name}")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)
