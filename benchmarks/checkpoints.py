"""Measures how long training stands still for a checkpoint, against other ways to save the same.

    python benchmarks/checkpoints.py [--dims 48,96,192,384] [--patch 64] [--saves 3] [--folder DIR]

One rank trains the real engine on random crops and saves every few steps, in turn with

    ours                this package: copy to the host, write, sync and check beside training
    ours, waiting       the same writing, but training waits for it, as it did in earlier versions
    DCP async_save      torch.distributed.checkpoint with its thread, on the same pieces
    DeepSpeed           its `save_checkpoint`, which neither syncs nor checks what it writes

and beside them the floor: to copy the bytes in memory, and to write and sync them. For each way:

    stall_s     how long the training thread waits: in the call that saves, in those after it, and
                in a step whose update has to wait until the state before it is copied
    slower_s    how much longer than usual the steps until the checkpoint is complete take, together
    write_s     from the call until training knows, at a step boundary, that it is complete

The share in the last column is that of the seconds that the same bytes take when training waits.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict_saver import async_save

from segresmamba.config import Config, load_config
from segresmamba.engine.checkpoints.checkpoint import Checkpoints, Meta
from segresmamba.engine.distributed import join
from segresmamba.engine.zero import ZeroEngine
from segresmamba.storage.atomic import sync
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import build_network
from segresmamba.task.weights import shapes_of

QUIET_STEPS = 4
"""Steps before each save, by which the usual time of a step is known."""


@dataclass
class Saver:
    """A way to save: `save` starts it, and `is_complete` is asked after each step."""

    save: Callable[[int], None]
    is_complete: Callable[[], bool]
    folder: Path


class Training:
    """One rank that trains on random crops."""

    def __init__(self, config: Config) -> None:
        self.ranks = Ranks.from_environment()
        join(self.ranks, config.train.threads)
        network = build_network(config, 1, 3)
        self.shapes = shapes_of(network)
        self.engine = ZeroEngine(network, config, self.ranks)
        size = config.data.patch
        self.x_BCDHW = torch.randn(config.train.batch_size, 1, *size, device=self.ranks.device)
        self.waited_s = 0.0
        """How long steps have waited until a copy of the state was complete."""
        wait = self.engine.state.wait_for_copy

        def timed() -> None:
            started = time.perf_counter()
            wait()
            self.waited_s += time.perf_counter() - started

        self.engine.state.wait_for_copy = timed  # type: ignore[method-assign]

    def step(self) -> float:
        """Train one step; return its seconds."""
        started = time.perf_counter()
        logits = self.engine.forward(self.x_BCDHW)
        assert isinstance(logits, torch.Tensor)
        self.engine.backward(logits.square().mean(), 1e-4)
        return time.perf_counter() - started


def savers(training: Training, root: Path) -> dict[str, Saver]:
    """The ways to save, by name."""
    engine, ranks = training.engine, training.ranks
    meta = Meta(0, 1, 2, "digest", training.shapes)
    found = {}
    for name, wait in (("ours", False), ("ours, waiting", True)):
        run = RunFolder(root / name)
        checkpoints = Checkpoints(run, ranks, 1, lambda: None)

        def save(step: int, checkpoints: Checkpoints = checkpoints, wait: bool = wait) -> None:
            checkpoints.save(engine, replace(meta, step=step))
            checkpoints.go_on(wait=wait)

        def is_complete(checkpoints: Checkpoints = checkpoints) -> bool:
            checkpoints.go_on(wait=False)
            return checkpoints._pending is None

        found[name] = Saver(save, is_complete, run.checkpoints)
    futures: list[Any] = []

    def save_with_dcp(step: int) -> None:
        # The engine's own tensors: DCP makes its copy itself.
        pieces = {
            f"{name}.{row}": values
            for name, parameter in engine.state._parameters.items()
            for row, values in enumerate(engine.state._held(parameter)[1])
        }
        futures.append(async_save(pieces, checkpoint_id=root / "dcp" / str(step)))

    found["DCP async_save"] = Saver(save_with_dcp, lambda: bool(futures[-1].done()), root / "dcp")
    found["DeepSpeed"] = Saver(
        lambda step: engine._engine.save_checkpoint(str(root / "deepspeed"), tag=str(step)),
        lambda: True,
        root / "deepspeed",
    )
    return found


def measured(training: Training, saver: Saver, number: int) -> dict[str, float]:
    """One save during training."""
    usual_s = statistics.median(training.step() for _ in range(QUIET_STEPS))
    os.sync()  # what others have written is not to be waited for
    training.waited_s, started = 0.0, time.perf_counter()
    saver.save(number)
    stall_s, slower_s, complete = time.perf_counter() - started, 0.0, saver.is_complete()
    while not complete:
        slower_s += training.step() - usual_s
        asked = time.perf_counter()
        complete = saver.is_complete()
        stall_s += time.perf_counter() - asked
    stall_s += training.waited_s
    write_s = time.perf_counter() - started
    written = sum(path.stat().st_size for path in saver.folder.rglob("*") if path.is_file())
    if saver.folder.name != "checkpoints":
        shutil.rmtree(saver.folder)
    return {
        "mb": written / 1e6, "stall_s": stall_s, "slower_s": slower_s, "write_s": write_s,
        "step_s": usual_s,
    }  # fmt: skip


def floor(root: Path, mb: float) -> dict[str, float]:
    """Seconds to copy this many bytes in memory, and to write and sync them."""
    source, target = torch.zeros(2, round(1e6 * mb), dtype=torch.uint8).random_().unbind()
    target.copy_(source)
    started = time.perf_counter()
    target.copy_(source)
    copy_s = time.perf_counter() - started
    os.sync()
    started = time.perf_counter()
    path = root / "floor"
    with path.open("wb", buffering=0) as file:
        file.write(memoryview(source.numpy()))  # type: ignore[arg-type]
    sync(path)
    write_s = time.perf_counter() - started
    path.unlink()
    return {"mb": mb, "stall_s": copy_s, "slower_s": 0.0, "write_s": write_s, "step_s": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", default="48,96,192,384", help="widths of the network's stages")
    parser.add_argument("--patch", type=int, default=64, help="side of a crop in voxels")
    parser.add_argument("--saves", type=int, default=3, help="saves of each way")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of training")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/checkpoints_cpu.csv"))
    arguments = parser.parse_args()
    config = load_config(
        [
            "data=custom", "data.store=none", f"data.patch={3 * [arguments.patch]}",
            "model=segresmamba", f"model.dims=[{arguments.dims}]", "train.zero_stage=2",
            "train.precision=fp32", "train.batch_size=1", f"train.threads={arguments.threads}",
        ]
    )  # fmt: skip
    rows: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        root, training = Path(name), Training(config)
        ways = savers(training, root)
        training.step()
        for number in range(arguments.saves + 1):  # the first save of each way is not counted
            for way, saver in ways.items():
                found = measured(training, saver, number + 1)
                if number:
                    rows.setdefault(way, []).append(found)
            if number:
                rows.setdefault("floor", []).append(floor(root, rows["ours"][-1]["mb"]))
    write(rows, arguments.out)


def write(rows: dict[str, list[dict[str, float]]], out: Path) -> None:
    """Print the medians, and write them as CSV."""
    keys = ("mb", "stall_s", "slower_s", "write_s", "step_s")
    table = {
        way: [statistics.median(row[key] for row in found) for key in keys]
        for way, found in rows.items()
    }
    waiting_s = table["ours, waiting"][keys.index("write_s")]
    print(f"{'':14}      MB  stall_s  slower_s  write_s  step_s  stall/waiting")
    for way, numbers in table.items():
        shown = "{:8.1f}{:9.4f}{:10.3f}{:9.3f}{:8.3f}".format(*numbers)
        print(f"{way:14}{shown}{numbers[1] / waiting_s:15.1%}")
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["way", *keys])
        writer.writerows([way, *(round(number, 4) for number in row)] for way, row in table.items())


if __name__ == "__main__":
    main()
