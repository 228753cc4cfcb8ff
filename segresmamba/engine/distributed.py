"""Who this process is among the processes of a job, and what they say to each other.

The launcher sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as
torchrun does; without them the job is this one process.
"""

from __future__ import annotations

import atexit
import os
import socket
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from segresmamba.config import Config
from segresmamba.errors import ConfigError
from segresmamba.task.ranks import Ranks

T = TypeVar("T")

# Ranks wait for each other while one of them scores a large volume.
_TIMEOUT = timedelta(hours=1)


def join(ranks: Ranks, threads: int | None) -> None:
    """Join the job's process group; it lasts as long as the process.

    Args:
        ranks: This process.
        threads: CPU threads of this rank; None takes the cores that Slurm gives a task, or shares
            the node's among its ranks.
    """
    torch.set_num_threads(threads or _fair_threads(ranks))
    is_cuda = ranks.device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(ranks.device)
    if dist.is_initialized():
        return
    # Not by way of the environment: a child process would inherit a port that is taken.
    alone = None if "MASTER_PORT" in os.environ else f"tcp://127.0.0.1:{_free_port()}"
    dist.init_process_group(
        ranks.backend,
        init_method=alone,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=_TIMEOUT,
        device_id=ranks.device if is_cuda else None,
    )
    atexit.register(dist.destroy_process_group)


def leave_abruptly() -> None:
    """Do not wait for the other ranks at exit: they may be in a collective that never ends."""
    atexit.unregister(dist.destroy_process_group)


def _fair_threads(ranks: Ranks) -> int:
    granted = os.environ.get("SLURM_CPUS_PER_TASK")
    if granted:
        return int(granted)
    return max(1, len(os.sched_getaffinity(0)) // ranks.local_world_size)


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
    dist.barrier()


def highest(value: int, device: torch.device) -> int:
    """The largest of the ranks' numbers: how they agree at a step boundary."""
    votes = torch.tensor(value, device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return int(votes.item())


def from_main(value: T) -> T:
    """The first rank's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def send_from_main(tensor: Tensor) -> None:
    """Fill a tensor on every rank with the first rank's values."""
    dist.broadcast(tensor, src=0)


def gather(value: T, ranks: Ranks) -> list[T]:
    """Every rank's value, in rank order, on every rank."""
    values: list[T | None] = [None] * ranks.world_size
    dist.all_gather_object(values, value)
    return [value for value in values if value is not None]


def mean_over_ranks(value: float, device: torch.device) -> float:
    """The mean of a number over the ranks."""
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
