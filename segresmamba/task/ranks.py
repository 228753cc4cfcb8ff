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
    """The environment for a child process that is a job of its own, not a rank of this one's."""
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
        """Whether this process writes the files that a job has once."""
        return self.rank == 0

    @property
    def is_node_main(self) -> bool:
        """Whether this process writes the files that each node has once."""
        return self.local_rank == 0

    @property
    def backend(self) -> str:
        """The collective library: nccl between GPUs, gloo between CPUs."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    @classmethod
    def from_environment(cls) -> Ranks:
        """Read the launcher's variables; without them the job is one process.

        A launcher shows each rank all GPUs of the node, or only its own, which then is number 0.

        Raises:
            LaunchError: If the node has fewer GPUs than ranks.
        """
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))
        gpus = torch.cuda.device_count()
        if 1 < gpus < local_world_size:
            raise LaunchError(
                "there are more ranks than GPUs on this node",
                where="cluster.tasks_per_node",
                got=f"{local_world_size} ranks, {gpus} GPUs",
                remedy=f"ask for {local_world_size} GPUs with cluster.gpus_per_node, or for {gpus} "
                "ranks",
            )
        gpu = torch.device("cuda", local_rank if gpus > 1 else 0)
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            world_size=world_size,
            local_rank=local_rank,
            local_world_size=local_world_size,
            device=gpu if gpus else torch.device("cpu"),
        )
