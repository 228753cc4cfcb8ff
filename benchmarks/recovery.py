"""Measures the time from the SIGKILL of a rank to the next trained step, and where it goes.

    python benchmarks/recovery.py STORE [--ranks 2] [--kills 3] [--train 10] [key=value ...]

Trains on this machine with `cluster=local`, kills the last rank some seconds after the first
checkpoint is complete (MLflow is then loaded, as it is in a run of hours), waits until the launcher
has ended, and gives the same command again, as Slurm does after a failure. The time that Slurm
itself needs to queue a job again (two minutes by default) is not in it. Each rank writes down how
long the parts of its start take; the table shows the first rank's. Processor time depends less than
seconds on what else the machine does. Ranks import the packages in the current folder, so the
script can measure another version.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
_MARKS = "RECOVERY_MARKS"
_DURATIONS: dict[str, float] = {}


def train(config: Any) -> Any:
    """What a rank runs in the place of the engine's `train`: the same, with a clock."""
    import psutil

    began = psutil.Process().create_time()
    _DURATIONS["python, submitit, configuration"] = time.time() - began
    started = time.time()
    from segresmamba.engine import trainer, zero

    _DURATIONS["imports of the trainer"] = time.time() - started
    _time(zero, "import_deepspeed", "import of DeepSpeed")
    _time(trainer, "join", "rendezvous")
    _time(trainer, "open_run_tracker", "tracker")
    _time(trainer.checkpoint, "load_newest", "checkpoint")
    _time(trainer.Task, "network", "network")
    _time(trainer.Trainer, "_train_step", "first step")
    first_step = trainer.Trainer._train_step

    def last(*arguments: Any) -> Any:
        stop = first_step(*arguments)
        path = Path(os.environ[_MARKS], f"rank-{os.environ['RANK']}.json")
        if not path.exists():
            marks = {"began": began, "trained": time.time(), "pid": os.getpid()}
            marks["processor_s"] = time.process_time()
            part = path.with_suffix(".part")
            part.write_text(json.dumps(marks | {"durations": _DURATIONS}))
            part.rename(path)
        return stop

    setattr(trainer.Trainer, "_train_step", last)  # noqa: B010
    return trainer.train(config)


def request_stop() -> None:
    """As in the engine."""
    from segresmamba.engine import request_stop

    request_stop()


def _time(owner: Any, name: str, label: str) -> None:
    function: Callable[..., Any] = getattr(owner, name)

    def timed(*arguments: Any, **keywords: Any) -> Any:
        started = time.time()
        try:
            return function(*arguments, **keywords)
        finally:
            _DURATIONS.setdefault(label, time.time() - started)

    setattr(owner, name, timed)


def launch(overrides: list[str]) -> int:
    """What `python -m launch train` does, with this module as the engine."""
    from launch.jobs.backends import backend_for
    from launch.jobs.train_job import TrainJob
    from segresmamba.config import load_config

    config = load_config(overrides)
    return backend_for(config).start(TrainJob(config, engine=HERE.stem))


class Start:
    """One start of the run."""

    def __init__(self, root: Path, words: list[str]) -> None:
        self.marks = Path(tempfile.mkdtemp(dir=root))
        path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        self.began = time.time()
        self.process = subprocess.Popen(
            [sys.executable, str(HERE), "--launch", *words],
            env=os.environ | {"PYTHONPATH": path, _MARKS: str(self.marks)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def rank(self, number: int) -> dict[str, Any]:
        """What a rank has written down, once it has trained a step."""
        path = self.marks / f"rank-{number}.json"
        while not path.exists():
            if self.process.poll() is not None:
                raise RuntimeError(f"the run ended with exit code {self.process.returncode}")
            time.sleep(0.01)
        return dict(json.loads(path.read_text()))


def recovered(root: Path, words: list[str], ranks: int, train_s: float) -> dict[str, float]:
    """Seconds of each part of one recovery."""
    run = root / "run"
    shutil.rmtree(run, ignore_errors=True)
    first = Start(root, words)
    victim = first.rank(ranks - 1)["pid"]
    while not list((run / "checkpoints").glob("step-*/meta.json")):
        time.sleep(0.01)
    time.sleep(train_s)
    killed = time.time()
    os.kill(victim, signal.SIGKILL)
    first.process.wait()
    second = Start(root, words)
    rank = second.rank(0)
    second.process.send_signal(signal.SIGINT)
    second.process.wait()
    parts = {"end of the job": second.began - killed, "launcher": rank["began"] - second.began}
    parts |= rank["durations"]
    total = rank["trained"] - killed
    return parts | {
        "all else": total - sum(parts.values()),
        "SIGKILL to step": total,
        "start to step": rank["trained"] - rank["began"],
        "start to step, processor time": rank["processor_s"],
    }


def main() -> None:
    if sys.argv[1:2] == ["--launch"]:
        sys.exit(launch(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path, help="a converted dataset")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument(
        "--train", type=float, default=10.0, help="seconds of training before the kill"
    )
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "recovery_cpu.csv")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        words = [
            "data=custom", f"data.store={arguments.store.resolve()}", "data.patch=[32,32,32]",
            "data.workers=1", "model.dims=[8,8]", "train.max_steps=100000", "train.warmup_steps=1",
            "train.checkpoint_every=5", f"train.batch_size={arguments.ranks}", "train.threads=1",
            "train.precision=fp32", "cluster=local", f"cluster.tasks_per_node={arguments.ranks}",
            f"run.root={root}", "run.name=run", *arguments.overrides,
        ]  # fmt: skip
        found = [
            recovered(root, words, arguments.ranks, arguments.train) for _ in range(arguments.kills)
        ]
    with arguments.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "median_s", "smallest_s", "largest_s"])
        for part in found[0]:
            values = [row[part] for row in found]
            row = [round(f(values), 2) for f in (statistics.median, min, max)]
            print(f"{part:34}{row[0]:8.2f}   ({row[1]:.2f} to {row[2]:.2f})")
            writer.writerow([part, *row])


if __name__ == "__main__":
    main()
