"""Counts the communication of a training step, and predicts that of large clusters from it.

    python benchmarks/scaling.py

Starts 1, 2, 4 and 8 gloo processes on this machine, trains a narrow network under every ZeRO stage
with the engine of `train`, and counts the collectives of one step and their bytes. Then it predicts
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
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scaling_model import STAGES, Cluster, Traffic, predicted_traffic, step_s
from torch.utils._python_dispatch import TorchDispatchMode

from launch.ports import free_port
from segresmamba.config import Config, load_config
from segresmamba.engine.distributed import join
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


class Collective(NamedTuple):
    """One kind of collective in one training step, as one rank sees it."""

    world_size: int
    stage: int
    parameters: int
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


def count_second_step(stage: int) -> list[Collective]:
    """Train two steps and count the collectives of the second; runs on every rank at once."""
    ranks = Ranks.from_environment()
    join(ranks, threads=1)
    config = narrow_config(stage, ranks.world_size)
    network = build_network(config, 1, 3)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    engine = ZeroEngine(network, config, ranks)
    counter = CollectiveCounter()
    for step in range(2):
        x_BCDHW = torch.randn(1, 1, *config.data.patch)
        if step == 0:  # the first step also builds what later ones reuse
            _step(engine, x_BCDHW)
        else:
            with counter:
                _step(engine, x_BCDHW)
    return [
        Collective(ranks.world_size, stage, parameters, kind, calls, counter.payload_bytes[kind])
        for kind, calls in sorted(counter.calls.items())
    ]


def _step(engine: ZeroEngine, x_BCDHW: torch.Tensor) -> None:
    logits = engine.forward(x_BCDHW)
    assert isinstance(logits, torch.Tensor)
    engine.backward(logits.square().mean(), lr=1e-3)


def narrow_config(stage: int, world_size: int) -> Config:
    """A network of a quarter of the widths, and one crop per rank."""
    return load_config(
        [
            "data=custom", "data.store=none", "data.patch=[64,32,32]", "model=segresmamba",
            "model.dims=[16,24,48,96]", f"train.zero_stage={stage}", "train.precision=fp32",
            f"train.batch_size={world_size}", f"cluster.tasks_per_node={world_size}",
        ]
    )  # fmt: skip


def count_collectives(world_size: int) -> list[Collective]:
    """The collectives of every stage, as rank 0 of real gloo processes saw them."""
    context = multiprocessing.get_context("spawn")
    port = free_port(f"scaling {os.getpid()}")
    rank = context.Value("i", 0)
    with ProcessPoolExecutor(
        world_size, context, initializer=_become_a_rank, initargs=(rank, world_size, port)
    ) as pool:
        found = []
        for stage in STAGES:
            calls = [pool.submit(count_second_step, stage) for _ in range(world_size)]
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
    """Print a line per world size and stage: what was counted, and what the model says."""
    for (world_size, stage), rows in itertools.groupby(found, lambda row: row[:2]):
        collectives = list(rows)
        weights_bytes = 4 * collectives[0].parameters
        traffic = Traffic.from_collectives(
            world_size, ((c.kind, c.calls, c.payload_bytes) for c in collectives)
        )
        model = predicted_traffic(stage, world_size, weights_bytes)
        payload_bytes = sum(c.payload_bytes for c in collectives)
        print(
            f"{world_size:5} {stage:5} {traffic.calls:6} {payload_bytes / weights_bytes:14.3f}"
            f" {traffic.sent_bytes / weights_bytes:21.3f} {model / weights_bytes:6.2f}  "
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
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV files")
    arguments = parser.parse_args()
    print("ranks stage  calls  payload / 4 P  sent by a rank / 4 P  model  collectives")
    found = []
    for world_size in WORLD_SIZES:
        new = count_collectives(world_size)
        print_counted(new)
        found += new
    _write(arguments.out / "scaling_collectives.csv", Collective._fields, found)
    cluster = Cluster(arguments.node_gb_s, arguments.network_gb_s, arguments.latency_us)
    calls = {
        stage: sum(c.calls for c in found if c.stage == stage and c.world_size == max(WORLD_SIZES))
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
