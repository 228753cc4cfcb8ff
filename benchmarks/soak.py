"""A long training of a tiny network, with everything on: does anything grow?

    python benchmarks/soak.py [STEPS] [--store data/sample.zarr] [--out benchmarks/results/soak.csv]

One reader process, tracking to SQLite, twenty checkpoints and ten validations. A thread samples the
memory of this process and of its children (proportional set size: shared pages are divided among
those who share them), its threads, its open files and the files in the run folder. The first fifth
is warm-up. The exit code is 1 if memory grows by more than 1 MB per 1000 steps, or if threads, open
files, files of the run or the time of a step grow.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from segresmamba.config import load_config
from segresmamba.engine import train

SAMPLE_S = 1.0
MB_PER_1000_STEPS = 1.0
SLOWER = 1.2
"""Largest ratio of the median step times of the last and the second fifth."""
Row = dict[str, float]


class Sampler:
    """Samples this process in a thread while a run in `folder` goes on."""

    def __init__(self, folder: Path) -> None:
        self.rows: list[Row] = []
        self._folder, self._read_bytes, self._step, self._step_s = folder, 0, 0, 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self._follow_journal()
            if self._step:
                self.rows.append(self._row())

    def _follow_journal(self) -> None:
        path = self._folder / "journal.jsonl"
        if not path.exists():
            return
        with path.open("rb") as journal:
            journal.seek(self._read_bytes)
            added = journal.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.splitlines():
            values = json.loads(line).get("values", {})
            if "time/step_s" in values:
                self._step, self._step_s = json.loads(line)["step"], values["time/step_s"]

    def _row(self) -> Row:
        me = psutil.Process()
        memory_mb = 0.0
        for process in [me, *me.children(recursive=True)]:
            with suppress(psutil.Error):  # it has just ended
                memory_mb += process.memory_full_info().pss / 1e6
        return {
            "step": self._step,
            "memory_mb": memory_mb,
            "threads": me.num_threads(),
            "open_files": me.num_fds(),
            "run_files": sum(1 for _ in self._folder.rglob("*")),
            "step_s": self._step_s,
        }


def growth(rows: list[Row], key: str) -> float:
    """By how much the median of the last fifth exceeds that of the second fifth."""
    fifth = max(1, len(rows) // 5)
    early = np.median([row[key] for row in rows[fifth : 2 * fifth]])
    return float(np.median([row[key] for row in rows[-fifth:]]) - early)


def verdict(rows: list[Row]) -> bool:
    """Print what grows, and return whether it is little enough."""
    warm = rows[len(rows) // 5 :]
    steps = np.array([row["step"] for row in warm])
    slope = 1000 * np.polyfit(steps, [row["memory_mb"] for row in warm], 1)[0]
    print(
        f"memory       {slope:+8.2f} MB per 1000 steps, {warm[-1]['memory_mb']:.0f} MB at the end"
    )
    good = bool(slope < MB_PER_1000_STEPS)
    for key in ("threads", "open_files", "run_files"):
        grown = growth(rows, key)
        print(f"{key:12} {grown:+8.0f}, {warm[-1][key]:.0f} at the end")
        good &= grown <= 0
    fifth = len(rows) // 5
    before, after = (
        float(np.median([row["step_s"] for row in part]))
        for part in (rows[fifth : 2 * fifth], rows[-fifth:])
    )
    print(f"step_s       {before:.4f} s, then {after:.4f} s")
    return good and after < SLOWER * before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="?", type=int, default=20_000)
    parser.add_argument("--store", default="data/sample.zarr")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/soak.csv"))
    options = parser.parse_args()
    steps = options.steps
    with tempfile.TemporaryDirectory() as root:
        config = load_config(
            [
                *("data=custom", f"data.store={options.store}", "data.patch=[32,32,32]"),
                *("data.workers=1", "model=unet", "model.channels=[4,8,8]", "train=sample"),
                *("train.threads=1", f"train.max_steps={steps}", "train.log_every=10"),
                *(f"train.validate_every={steps // 10}", f"train.checkpoint_every={steps // 20}"),
                *("validation.overlap=0", f"run.root={root}", "run.name=soak"),
            ]
        )
        with Sampler(Path(root, "soak")) as sampler:
            train(config)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, sampler.rows[0])
        writer.writeheader()
        writer.writerows(sampler.rows)
    sys.exit(0 if verdict(sampler.rows) else 1)


if __name__ == "__main__":
    main()
