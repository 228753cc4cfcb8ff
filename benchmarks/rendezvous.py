"""How long the ranks of a job take to find each other, with 8, 64 and 256 processes here.

    python benchmarks/rendezvous.py

Each process joins the group as a rank of `train` does (`engine.distributed.join`, gloo), passes a
barrier, agrees on a number as at a step boundary, and leaves. The processes are forks that have
torch imported already, so the times do not include reading a Python installation.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from launch.ports import free_port
from segresmamba.engine.distributed import highest, join, wait_for_all
from segresmamba.task.ranks import Ranks

RESULTS = Path(__file__).parent / "results"


class Rendezvous(NamedTuple):
    """Seconds that the slowest rank took for each part, from the start of the first process."""

    ranks: int
    joined_s: float
    barrier_s: float
    """The first barrier, in which gloo connects every pair."""
    agreed_s: float
    """One agreement after the barrier, as at every step boundary."""
    failed: int


def be_a_rank(rank: int, world_size: int, port: int, started_s: float, answers: Any) -> None:
    """Join the group, wait for all ranks, agree, and put the three times into `answers`."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ |= dict(
        zip(names, map(str, (rank, rank, world_size, "127.0.0.1", port)), strict=True)
    )
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    join(Ranks(rank, world_size, rank, world_size, torch.device("cpu")), threads=1)
    joined_s = time.monotonic() - started_s
    wait_for_all()
    barrier_s = time.monotonic() - started_s - joined_s
    before_s = time.monotonic()
    if highest(rank, torch.device("cpu")) != world_size - 1:
        raise RuntimeError("the ranks do not agree")
    answers.put((joined_s, barrier_s, time.monotonic() - before_s))
    wait_for_all()
    dist.destroy_process_group()


def rendezvous(world_size: int) -> Rendezvous:
    """Start the ranks and wait for their answers."""
    context = multiprocessing.get_context("fork")
    port = free_port(f"rendezvous {os.getpid()}")
    answers, started_s = context.Queue(), time.monotonic()
    processes = [
        context.Process(target=be_a_rank, args=(rank, world_size, port, started_s, answers))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    times = [answers.get(timeout=600) for _ in range(world_size)]
    for process in processes:
        process.join()
    slowest = [round(max(column), 3) for column in zip(*times, strict=True)]
    failed = sum(process.exitcode != 0 for process in processes)
    return Rendezvous(world_size, *slowest, failed)


def main() -> None:
    """Measure every world size, print and write the times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--out", type=Path, default=RESULTS / "rendezvous_cpu.csv")
    arguments = parser.parse_args()
    print("  ".join(f"{field:>10}" for field in Rendezvous._fields), flush=True)
    with arguments.out.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(Rendezvous._fields)
        for world_size in arguments.ranks:
            found = rendezvous(world_size)
            table.writerow(found)
            print("  ".join(f"{value:>10}" for value in found), flush=True)


if __name__ == "__main__":
    main()
