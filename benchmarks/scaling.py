"""Counts the communication of a training step, and predicts that of large clusters from it.

    unshare --net sh -c 'ip link set lo up; python benchmarks/scaling.py'

Starts 1, 2, 4 and 8 gloo processes on this machine, trains a narrow network under every ZeRO stage
with the engine of `train`, and under PyTorch's FSDP2, and counts the collectives of one step and
their bytes. In a network of its own, as above, it also counts what really goes over the loopback
device. `python benchmarks/scaling.py` alone counts there what others send too. Then it predicts
the communication of the full network on 8, 64 and 512 GPUs from `scaling_model.py`, after checking
that model against what was counted. Prints tables, writes two CSV files. Nothing is timed.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed  # noqa: F401
import torch
from scaling_model import STAGES, Cluster, Traffic, predicted_traffic, step_s
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from launch.ports import free_port
from segresmamba.config import Config, load_config
from segresmamba.engine.distributed import join, wait_for_all
from segresmamba.engine.zero import ZeroEngine
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import build_network

RESULTS = Path(__file__).parent / "results"
WORLD_SIZES = (1, 2, 4, 8)
CLUSTERS = (8, 64, 512)
# Kinds of the operators of c10d. The payload of a collective is the whole tensor that every rank
# ends up with, or starts from.
_KINDS = {
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
    "reduce_": "reduce",
    "broadcast_": "broadcast",
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "allgather_coalesced_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
}


class Sharding(NamedTuple):
    """How the ranks divide weights, gradients and optimizer state."""

    name: str
    stage: int
    overlaps: bool = True


SHARDINGS = (
    Sharding("0", 0),
    Sharding("1", 1),
    Sharding("1 without overlap", 1, overlaps=False),
    Sharding("2", 2),
    Sharding("2 without overlap", 2, overlaps=False),
    Sharding("3", 3),
    Sharding("FSDP2", 2),
)


class Collective(NamedTuple):
    """One kind of collective in one training step, as one rank sees it."""

    world_size: int
    sharding: str
    stage: int
    parameters: int
    loopback_bytes: int
    """What all ranks together sent in the step, on this machine's loopback device."""
    kind: str
    calls: int
    payload_bytes: int


class CollectiveCounter(TorchDispatchMode):
    """Counts the collectives of the enclosed code and their payloads."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.payload_bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            if name not in _KINDS:
                raise NotImplementedError(f"a collective that is not counted: {name}")
            sizes = [_bytes(argument) for argument in args]
            self.calls[_KINDS[name]] += 1
            self.payload_bytes[_KINDS[name]] += max(sizes)
        return func(*args, **kwargs or {})


def _bytes(argument: object) -> int:
    if isinstance(argument, torch.Tensor):
        return argument.nbytes
    if isinstance(argument, list | tuple):
        return sum(_bytes(item) for item in argument)
    return 0


def count_steps(sharding: Sharding) -> list[Collective]:
    """Train three steps and count the collectives of the second; runs on every rank at once."""
    ranks = Ranks.from_environment()
    join(ranks, threads=1)
    config = narrow_config(sharding, ranks.world_size)
    network = build_network(config, 1, 3)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    make = fsdp_step if sharding.name == "FSDP2" else zero_step
    step = make(network, config, ranks)
    counter = CollectiveCounter()
    step()  # also builds what later ones reuse
    with counter:
        step()
    sent = [_loopback_bytes()]
    step()
    sent.append(_loopback_bytes())
    return [
        Collective(
            ranks.world_size, sharding.name, sharding.stage, parameters, sent[1] - sent[0],
            kind, calls, counter.payload_bytes[kind],
        )
        for kind, calls in sorted(counter.calls.items())
    ]  # fmt: skip


def zero_step(network: nn.Module, config: Config, ranks: Ranks) -> Callable[[], None]:
    """A training step of the engine of `train`."""
    engine = ZeroEngine(network, config, ranks)

    def step() -> None:
        logits = engine.forward(torch.randn(1, 1, *config.data.patch))
        assert isinstance(logits, torch.Tensor)
        engine.backward(logits.square().mean(), lr=1e-3)

    return step


def fsdp_step(network: nn.Module, config: Config, ranks: Ranks) -> Callable[[], None]:
    """The same step with FSDP2, which keeps the gathered weights for the backward pass."""
    fully_shard(network, mesh=init_device_mesh("cpu", (ranks.world_size,)),
                reshard_after_forward=False)  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)

    def step() -> None:
        network(torch.randn(1, 1, *config.data.patch)).square().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.train.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _loopback_bytes() -> int:
    wait_for_all()
    lines = Path("/proc/net/dev").read_text().splitlines()
    line = next(line for line in lines if line.strip().startswith("lo:"))
    sent = int(line.partition(":")[2].split()[8])
    wait_for_all()
    return sent


def narrow_config(sharding: Sharding, world_size: int) -> Config:
    """A network of a quarter of the widths, and one crop per rank."""
    return load_config(
        [
            "data=custom", "data.store=none", "data.patch=[64,32,32]", "model=segresmamba",
            "model.dims=[16,24,48,96]", f"train.zero_stage={sharding.stage}",
            f"train.overlap_comm={sharding.overlaps}", "train.precision=fp32",
            f"train.batch_size={world_size}", f"cluster.tasks_per_node={world_size}",
        ]
    )  # fmt: skip


def count_collectives(world_size: int) -> list[Collective]:
    """The collectives of every way to shard, as rank 0 of real gloo processes saw them."""
    context = multiprocessing.get_context("fork")  # they have all imports then
    port = free_port(f"scaling {os.getpid()}")
    rank = context.Value("i", 0)
    with ProcessPoolExecutor(
        world_size, context, initializer=_become_a_rank, initargs=(rank, world_size, port)
    ) as pool:
        found = []
        for sharding in SHARDINGS:
            calls = [pool.submit(count_steps, sharding) for _ in range(world_size)]
            of_all_ranks = [call.result() for call in calls]
            found += of_all_ranks[0]
    return found


def _become_a_rank(counter: Any, world_size: int, port: int) -> None:
    with counter.get_lock():
        rank = counter.value
        counter.value += 1
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")
    values = (rank, rank, world_size, "127.0.0.1", port, "cpu")
    os.environ |= dict(zip(names, map(str, values), strict=True))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def print_counted(found: list[Collective]) -> None:
    """Print a line per world size and sharding: what was counted, and what the model says."""
    for (world_size, name), rows in itertools.groupby(found, lambda row: row[:2]):
        collectives = list(rows)
        weights_bytes = 4 * collectives[0].parameters
        traffic = Traffic.from_collectives(
            world_size, ((c.kind, c.calls, c.payload_bytes) for c in collectives)
        )
        overlaps = not name.endswith("without overlap")
        stage = 0 if name == "FSDP2" else collectives[0].stage  # FSDP2 sends as much as stage 0
        model = predicted_traffic(stage, world_size, weights_bytes, overlaps=overlaps)
        loopback_bytes = collectives[0].loopback_bytes / world_size
        payload_bytes = sum(c.payload_bytes for c in collectives)
        print(
            f"{world_size:5}  {name:18} {traffic.calls:5} {payload_bytes / weights_bytes:14.3f}"
            f" {traffic.sent_bytes / weights_bytes:21.3f} {model / weights_bytes:6.2f}"
            f" {loopback_bytes / weights_bytes:14.3f}  "
            + ", ".join(f"{c.calls} {c.kind}" for c in collectives),
            flush=True,
        )


def main() -> None:
    """Count, print the counts beside the model, predict, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--parameters",
        type=int,
        default=68_301_891,
        help="number of parameters of the full network",
    )
    parser.add_argument("--compute-s", type=float, nargs="+", default=[0.1, 0.3, 1.0],
                        help="seconds of a step on one GPU, assumed until measured")  # fmt: skip
    parser.add_argument(
        "--node-gb-s", type=float, default=300.0, help="bandwidth per GPU inside a node"
    )
    parser.add_argument(
        "--network-gb-s", type=float, default=25.0, help="bandwidth per GPU between nodes"
    )
    parser.add_argument(
        "--latency-us", type=float, default=20.0, help="latency of a hop between GPUs"
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=WORLD_SIZES)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV files")
    arguments = parser.parse_args()
    print(
        "ranks  sharding           calls  payload / 4 P  sent by a rank / 4 P  model"
        "  loopback / 4 P  collectives"
    )
    found = []
    for world_size in arguments.ranks:
        new = count_collectives(world_size)
        print_counted(new)
        found += new
    _write(arguments.out / "scaling_collectives.csv", Collective._fields, found)
    cluster = Cluster(arguments.node_gb_s, arguments.network_gb_s, arguments.latency_us)
    most = max(arguments.ranks)
    calls = {
        stage: sum(c.calls for c in found if (c.world_size, c.sharding) == (most, str(stage)))
        for stage in STAGES
    }
    rows = []
    for stage, gpus, compute_s in itertools.product(STAGES, CLUSTERS, arguments.compute_s):
        total_s = step_s(stage, gpus, compute_s, 4 * arguments.parameters, calls[stage], cluster)
        rows.append((stage, gpus, compute_s, round(total_s, 4), round(compute_s / total_s, 3)))
    fields = ("stage", "gpus", "compute_s", "step_s", "efficiency")
    print("\n" + "  ".join(f"{field:>10}" for field in fields))
    for row in rows:
        print("  ".join(f"{value:>10}" for value in row))
    _write(arguments.out / "scaling_prediction.csv", fields, rows)


def _write(path: Path, fields: tuple[str, ...], rows: list[Any]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([fields, *rows])


if __name__ == "__main__":
    main()
