"""The process group of a job, and the collective calls that its ranks make.

Every rank has to make the same collective calls in the same order: a rank that leaves one out keeps
the others waiting.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from segresmamba.config import Config
from segresmamba.errors import ConfigError, LaunchError
from segresmamba.task.ranks import Ranks

T = TypeVar("T")

# While one rank scores a large volume, the others wait longer than PyTorch's default allows.
_TIMEOUT = timedelta(hours=1)


def join(ranks: Ranks, threads: int | None) -> None:
    """Join the job's process group; it lasts as long as the process.

    Args:
        ranks: This process.
        threads: CPU threads of this rank. None takes the cores that Slurm grants a task, or an
            equal part of the node's cores.

    Raises:
        LaunchError: If torchrun is to start ranks again and they could not meet.
    """
    if threads is None:
        granted = os.environ.get("SLURM_CPUS_PER_TASK")
        cores = len(os.sched_getaffinity(0))
        threads = int(granted) if granted else max(1, cores // ranks.local_world_size)
    torch.set_num_threads(threads)
    is_cuda = ranks.device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(ranks.device)
    if dist.is_initialized():
        return
    if ranks.world_size > 1:
        _refuse_restarts_that_hang()
    # One process has nobody to meet. A port could be taken, and a child process would inherit it.
    is_alone = ranks.world_size == 1
    # With the device given, a barrier does not have to guess the GPU from the rank's number. But
    # NCCL then splits DeepSpeed's groups from this one, which has failed on a single GPU
    # (deepspeedai/DeepSpeed#8248).
    dist.init_process_group(
        ranks.backend,
        store=dist.HashStore() if is_alone else None,  # type: ignore[attr-defined]
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=_TIMEOUT,
        device_id=ranks.device if is_cuda and not is_alone else None,
    )
    atexit.register(dist.destroy_process_group)


def _refuse_restarts_that_hang() -> None:
    """Refuse restarts by torchrun (--max-restarts) over the store that its agents share.

    Ranks that were started again would find the addresses of those before there (torch 2.13), and
    wait for them until `_TIMEOUT`.
    """
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if restarts != "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise LaunchError(
            "ranks that torchrun starts again would wait for those before",
            where="torchrun --max-restarts",
            got=restarts,
            remedy="export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun --rdzv-backend=c10d, "
            "or give --max-restarts=0: the same command goes on from the newest checkpoint",
        )


def wait_as_long_in_all_groups() -> None:
    """Give the groups that others have made the time that `join` gave the job's own.

    A group of NCCL that is made without a time ends its processes after ten minutes, before
    `data.patience_s` or `train.hang_timeout_s` may be over.
    """
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d._set_pg_timeout(_TIMEOUT, group)


def leave_abruptly() -> None:
    """Do not wait for the other ranks at exit: one may be in a collective call that never ends."""
    atexit.unregister(dist.destroy_process_group)


def micro_batch(config: Config, world_size: int) -> int:
    """Crops per rank and backward pass.

    Raises:
        ConfigError: If the ranks and accumulation steps do not divide the batch.
    """
    parts = world_size * config.train.accumulation
    if config.train.batch_size % parts:
        raise ConfigError(
            f"the batch does not divide among {world_size} ranks "
            f"x {config.train.accumulation} accumulation steps",
            where="train.batch_size",
            got=config.train.batch_size,
            remedy=f"choose a multiple of {parts}, such as train.batch_size={parts}",
        )
    return config.train.batch_size // parts


def wait_for_all() -> None:
    """Return once every rank is here."""
    if dist.get_world_size() > 1:  # without a device, a barrier of one would warn
        dist.barrier()


def highest(value: int, device: torch.device) -> int:
    """The largest of the ranks' numbers, by which they agree at a step boundary (collective)."""
    votes = torch.full((), value, device=device)  # filled there: the host copies nothing
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return int(votes.item())


def from_main(value: T) -> T:
    """The first rank's value, on every rank (collective)."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def send_from_main(tensor: Tensor) -> None:
    """Fill a tensor on every rank with the first rank's values (collective)."""
    dist.broadcast(tensor, src=0)


def gather(value: T, ranks: Ranks) -> list[T]:
    """Every rank's value, in rank order, on every rank (collective)."""
    values: list[T | None] = [None] * ranks.world_size
    dist.all_gather_object(values, value)
    return [value for value in values if value is not None]


def agree(act: Callable[[], T], ranks: Ranks) -> T:
    """This rank's result of `act`, or on all ranks the error of the first that fails (collective).

    Raises:
        Exception: What `act` raises, here or on another rank.
    """
    error: Exception | None = None
    try:
        result = act()
    except Exception as caught:
        error = caught
    for refusal in gather(error, ranks):
        if refusal is not None:
            raise refusal from error
    return result


def mean_over_ranks(value: float, device: torch.device) -> float:
    """The mean of a number over the ranks (collective)."""
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()
