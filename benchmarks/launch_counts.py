"""Counts what a job's ranks ask of the shared folder, of Slurm and of the first host.

    python benchmarks/launch_counts.py

Calls the launcher's own functions for 8, 64 and 512 ranks, eight on a node, one rank after the
other in this process: their number matters here, not their speed. It counts what they do with files
below the run folder, and the programs of Slurm that they start. The ranks' meeting place is a real
TCPStore with a client for each rank. Nothing is timed.
"""

from __future__ import annotations

import argparse
import csv
import os
import pickle
import signal
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from launch import failures
from launch.jobs import rank
from launch.jobs.train_job import TrainJob
from segresmamba.config import load_config
from segresmamba.engine.checkpoints.rank_files import rank_file, read_ranks, write_rank
from segresmamba.task.ranks import Ranks

RESULTS = Path(__file__).parent / "results"
RANKS_PER_NODE = 8
JOB = "4711"
# Events of Python's audit hooks that touch a file or list a folder.
_FILE_EVENTS = {"open", "os.listdir", "os.scandir", "os.rename", "os.remove", "os.mkdir"}


class Counted:
    """What this process does with files below a folder, and which programs it starts."""

    def __init__(self, folder: Path) -> None:
        self.found: Counter[str] = Counter()
        self._folder, self._counts = str(folder), False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._counts:
            return
        if event == "subprocess.Popen":
            self.found["programs"] += 1
        elif event in _FILE_EVENTS and str(arguments[0]).startswith(self._folder):
            self.found["files"] += 1

    @contextmanager
    def on(self) -> Iterator[None]:
        """Count while this is open. Looks at a file's state have no audit event of their own."""

        def looking(look: Callable[..., Any]) -> Callable[..., Any]:
            def counted(path: Any, *arguments: Any, **keywords: Any) -> Any:
                self.found["files"] += str(path).startswith(self._folder)
                return look(path, *arguments, **keywords)

            return counted

        with (
            mock.patch.object(os, "stat", looking(os.stat)),
            mock.patch.object(os, "lstat", looking(os.lstat)),
        ):
            self._counts = True
            try:
                yield
            finally:
                self._counts = False


def as_rank(number: int, world_size: int) -> None:
    """Take a rank's place, by Slurm's variables."""
    nodes = -(-world_size // RANKS_PER_NODE)
    os.environ |= {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": JOB,
        "SLURM_NTASKS": str(world_size),
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NODEID": str(number // RANKS_PER_NODE),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number % RANKS_PER_NODE),
        "SLURM_JOB_NODELIST": f"gpu[001-{nodes:03}]",
    }


def start(number: int, logs: Path) -> None:
    """What a rank does with files before it trains."""
    rank.submitted_pickle(logs, JOB)
    rank.load_job(logs, JOB)
    failures.failure_path(logs, JOB, number).unlink(missing_ok=True)
    rank.rank_environment(rank.place())


def fail(number: int, logs: Path) -> None:
    """What a rank writes that fails."""
    failures.write_failure(failures.Failure.from_error(OSError("gone"), number), logs, JOB)


def meet(world_size: int) -> int:
    """Connections at the first host: all ranks join the store and read the address of the ring."""
    host = dist.TCPStore("127.0.0.1", 0, world_size, is_master=True, wait_for_workers=False)
    host.set("address", "x")
    others = [
        dist.TCPStore("127.0.0.1", host.port, world_size, wait_for_workers=False)
        for _ in range(world_size - 1)
    ]
    for store in others:
        store.get("address")
    return sum(_is_to(host.port, line) for line in _connections())


def _connections() -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        yield from Path("/proc/net", name).read_text().splitlines()[1:]


def _is_to(port: int, line: str) -> bool:
    _, _, remote, state, *_ = line.split()
    return state == "01" and int(remote.rpartition(":")[2], 16) == port  # 01: established


def counts(world_size: int, folder: Path) -> dict[str, int]:
    """The table's row of a number of ranks."""
    logs, checkpoint = folder / "logs", folder / "step"
    logs.mkdir()
    checkpoint.mkdir()
    config = load_config(["data=custom", "data.store=x", f"run.root={folder}"])
    (logs / f"{JOB}_submitted.pkl").write_bytes(pickle.dumps(rank.resubmission(TrainJob(config))))
    counted = Counted(folder)

    def of_all(act: Callable[[int], object]) -> Counter[str]:
        counted.found.clear()
        for number in range(world_size):
            as_rank(number, world_size)
            with counted.on():
                act(number)
        return counted.found.copy()

    row = {"ranks": world_size, "start": of_all(lambda number: start(number, logs))["files"]}
    row["meet"] = meet(world_size)
    row["SIGTERM"] = of_all(lambda _: rank.goes_back_to_queue({signal.SIGTERM}))["programs"]
    row["save"], row["resume"] = save_and_resume(world_size, checkpoint, of_all)
    row["fail"] = of_all(lambda number: fail(number, logs))["files"]
    counted.found.clear()
    with counted.on():  # the batch script
        failures.first_failure(logs, JOB)
        failures.forget_failures(logs, JOB)
    row["after"] = counted.found["files"]
    return row


def save_and_resume(
    world_size: int, folder: Path, of_all: Callable[[Callable[[int], object]], Counter[str]]
) -> tuple[int, int]:
    """Operations on files in which all ranks write a checkpoint, and read it again."""
    digests: dict[str, str] = {}

    def place(number: int) -> Ranks:
        return Ranks(
            number, world_size, number % RANKS_PER_NODE, RANKS_PER_NODE, torch.device("cpu")
        )

    def save(number: int) -> None:
        pieces = mock.Mock(result=lambda: {"w": (number, torch.ones(3, 1))})
        content = {"pieces": pieces, "buffers": {}, "random": {}, "scaler": None}
        path = rank_file(folder, number)
        digests[path.name] = write_rank(folder, content, place(number))

    def resume(number: int) -> None:
        read_ranks(
            folder, place(number), writers=world_size, sizes={"w": world_size}, digests=digests
        )

    return of_all(save)["files"], of_all(resume)["files"]


def stand_in_for_slurm(folder: Path) -> None:
    """Put a scontrol on the PATH that calls every job running."""
    program = folder / "scontrol"
    program.write_text("#!/bin/sh\necho JobState=RUNNING\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


def main() -> None:
    """Count for every number of ranks, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--out", type=Path, default=RESULTS / "launch_counts.csv")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        stand_in_for_slurm(Path(name))
        rows = []
        for world_size in arguments.ranks:
            folder = Path(name, str(world_size))
            folder.mkdir()
            rows.append(counts(world_size, folder))
    with arguments.out.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    for row in ({name: name for name in rows[0]}, *rows):
        print("  ".join(f"{value:>8}" for value in row.values()))


if __name__ == "__main__":
    main()
