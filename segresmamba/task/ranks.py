"""Who this process is among the processes of a job, and the device it computes on.

The launcher sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as
torchrun does; without them the job is this one process.

A job that was given GPUs never computes on the CPU unless told so: where torch sees no GPU, it is
refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from segresmamba.errors import LaunchError

Device = Literal["auto", "cuda", "cpu"]

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
    def from_environment(
        cls, device: Device = "auto", gpus_asked: int = 0, cpu_choice: str = "train.device=cpu"
    ) -> Ranks:
        """Read the launcher's variables; without them the job is one process.

        A launcher shows each rank all GPUs of the node, or only its own, which then is number 0.

        Args:
            device: What `train.device` says. auto takes the GPU if there is one.
            gpus_asked: GPUs that the job asked for on each node.
            cpu_choice: What the user types to compute on the CPU, for errors.

        Raises:
            LaunchError: If torch sees no GPU although some were granted or asked for, or if the
                node has fewer GPUs than ranks.
        """
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))
        gpus = 0 if device == "cpu" else torch.cuda.device_count()
        if gpus:
            refuse_more_ranks_than_gpus(local_world_size, gpus)
        elif device != "cpu":
            _refuse_the_cpu(device, max(gpus_asked, gpus_granted(os.environ)), cpu_choice)
        gpu = torch.device("cuda", local_rank if gpus > 1 else 0)
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            world_size=world_size,
            local_rank=local_rank,
            local_world_size=local_world_size,
            device=gpu if gpus else torch.device("cpu"),
        )


def device_for(trained_on: Device) -> torch.device:
    """The device of this process for the network of an earlier run.

    Args:
        trained_on: `train.device` of that run. A run on a GPU may go on on any device.

    Raises:
        LaunchError: If Slurm has granted GPUs that torch does not see.
    """
    device: Device = "cpu" if trained_on == "cpu" else "auto"
    return Ranks.from_environment(device, cpu_choice="sbatch --gpus-per-node=0").device


def gpus_granted(environment: Mapping[str, str]) -> int:
    """GPUs that Slurm has granted the job on this node; 0 outside a Slurm job."""
    if count := environment.get("SLURM_GPUS_ON_NODE"):
        return int(count)
    numbers = environment.get("SLURM_STEP_GPUS") or environment.get("SLURM_JOB_GPUS") or ""
    return len([number for number in numbers.split(",") if number])


def refuse_more_ranks_than_gpus(ranks: int, visible: int) -> None:
    """Refuse a node whose ranks would have to share a GPU, which NCCL cannot.

    Args:
        ranks: Ranks on this node.
        visible: GPUs that this process sees. Where Slurm shows each rank its own GPU, this is 1,
            and what it granted counts.

    Raises:
        LaunchError: If there are fewer GPUs.
    """
    gpus = max(visible, gpus_granted(os.environ))
    if gpus >= ranks:
        return
    raise LaunchError(
        "there are more ranks than GPUs on this node",
        where="cluster.tasks_per_node",
        got=f"{ranks} ranks, {gpus} GPUs",
        remedy=f"give cluster.tasks_per_node={gpus}, or train.device=cpu; on Slurm ask for "
        f"cluster.gpus_per_node={ranks}",
    )


def torch_build() -> str:
    """What torch was built for, and the driver of this machine, in words."""
    version: dict[str, str | None] = vars(torch.version)
    cuda, hip = version.get("cuda"), version.get("hip")
    built = f"for CUDA {cuda}" if cuda else f"for ROCm {hip}" if hip else "for CPUs only"
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"Kernel Module\D*([\d.]+)", path.read_text() if path.exists() else "")
    driver = f"NVIDIA driver {found[1]}" if found else "no NVIDIA driver was found"
    return f"torch {torch.__version__}, built {built}; {driver}"


def _refuse_the_cpu(device: Device, gpus: int, cpu_choice: str) -> None:
    """Refuse to compute on the CPU where GPUs were granted or asked for."""
    if device == "auto" and not gpus:
        return
    raise LaunchError(
        "torch sees no GPU, and the job would compute on the CPU",
        where=re.split("[ =]", cpu_choice)[0],
        got=f"{device}, with {gpus} GPU(s) granted or asked for on this node; {torch_build()}; "
        f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}",
        remedy="install a build of torch that fits the driver (https://pytorch.org/get-started), "
        f"or give {cpu_choice} to compute on the CPU",
    )
