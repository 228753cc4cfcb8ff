"""The snapshot and the error message of a run that ran out of memory.

What failed first is the error to report, so nothing in here may raise another one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from segresmamba.errors import ConfigError, UserError
from segresmamba.planner import Planner, gpu_memory_gib, verdict
from segresmamba.storage.atomic import write_text
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import Task
from segresmamba.tracking import PhaseMemory

logger = logging.getLogger(__name__)


def out_of_memory(
    error: BaseException, task: Task, ranks: Ranks, logs: Path, memory: PhaseMemory
) -> UserError:
    """Write a snapshot of the memory, and make the error that says what to do.

    Args:
        error: The error that was raised.
        task: What was trained.
        ranks: This process.
        logs: Folder of the snapshot; created.
        memory: The peaks so far.
    """
    snapshot = logs / f"out-of-memory-rank-{ranks.rank}.json"
    advice = _advice(task)
    try:
        logs.mkdir(parents=True, exist_ok=True)
        content: dict[str, object] = {
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
            dump(str(snapshot.with_suffix(".pickle")))
        write_text(snapshot, json.dumps(content, indent=1) + "\n")
    except (OSError, RuntimeError) as problem:
        logger.error("no memory snapshot: %s", problem)
    config, train = task.config, task.config.train
    where = "the GPU" if ranks.device.type == "cuda" else "this machine"
    return UserError(
        f"{where} ran out of memory in the phase {memory.phase!r} on rank {ranks.rank}",
        where=snapshot,
        got=f"data.patch={list(config.data.patch)}, train.batch_size={train.batch_size}, "
        f"train.accumulation={train.accumulation}, train.precision={train.precision}, "
        f"train.zero_stage={train.zero_stage}: {str(error).splitlines()[0]}",
        remedy=f"{advice}; more train.accumulation, a smaller data.patch or batch, "
        "train.precision=bf16, and a higher train.zero_stage on several GPUs need less memory",
    )


def _advice(task: Task) -> str:
    """The planner's verdict on these settings on this GPU, or how to ask for it."""
    ask = "`segresmamba plan`, with the same settings, says what fits"
    try:
        memory_gib = gpu_memory_gib(task.config)
    except ConfigError:  # there is no GPU to plan for
        return ask
    try:
        plan = Planner(task).plan(memory_gib)
        answer = verdict(plan) + (", if nothing else is on it" if plan.fits else "")
    except UserError as refusal:
        answer = f"{refusal.problem} ({refusal.got}): {refusal.remedy}"
    except (MemoryError, RuntimeError) as problem:
        logger.error("the planner cannot say what fits: %s", problem)
        return ask
    return f"the planner, for a GPU of {memory_gib:.4g} GiB: {answer}"
