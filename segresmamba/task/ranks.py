"""Who this process is among the processes of a job, and the device it computes on.

The launcher sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as
torchrun does; without them the job is this one process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from segresmamba.errors import LaunchError

_VARIABLES = frozenset(
    {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
)


def environment_of_one() -> dict[str, str]:
    """The environment for a process that is a job of its own, whatever job this one is part of."""
    return {name: value for name, value in os.environ.items() if name not in _VARIABLES}


@dataclass(frozen=True)
class Ranks:
    """This process's place in the job."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes what the job writes once."""
        return self.rank == 0

    @property
    def is_node_main(self) -> bool:
        """Whether this process writes what each node writes once."""
        return self.local_rank == 0

    @property
    def backend(self) -> str:
        """The collective library: nccl between GPUs, gloo between CPUs."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    @classmethod
    def from_environment(cls) -> Ranks:
        """Read the launcher's variables; one process where there are none."""
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            world_size=world_size,
            local_rank=local_rank,
            local_world_size=local_world_size,
            device=_device(local_rank, local_world_size),
        )


def _device(local_rank: int, local_world_size: int) -> torch.device:
    """The GPU of this rank: a launcher shows each rank all GPUs of the node, or its own alone."""
    count = torch.cuda.device_count()
    if count == 0:
        return torch.device("cpu")
    if 1 < count < local_world_size:
        raise LaunchError(
            "there are more ranks than GPUs on this node",
            where="cluster.tasks_per_node",
            got=f"{local_world_size} ranks, {count} GPUs",
            remedy=f"ask for {local_world_size} GPUs with cluster.gpus_per_node, or for {count} "
            "ranks",
        )
    return torch.device("cuda", local_rank if count > 1 else 0)
