"""Measures what tracking costs a training step.

    python benchmarks/tracking.py [--steps 2000] [--out benchmarks/results/tracking_cpu.csv]

1. How long a step waits for its record in the journal, with a real uploader beside it. The uploader
   sends to SQLite, to a server that is not there, to one that takes a second for every answer, and
   to one that answers 500. Mean and 99th percentile in ms; the promise is a mean below 1 ms.
2. How much the energy meter and the samples of the node slow a step down; the promise is below 1 %.
   Two figures, both in processor time, which other programs on the machine hardly change. The first
   compares the median of the same step with and without them, in alternating blocks. The second is
   the time of their own threads, in percent of one core: if they held the interpreter lock all that
   time, a step would wait as long.
"""

from __future__ import annotations

import argparse
import csv
import http.server
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from segresmamba.config import TrackingConfig
from segresmamba.tracking import EmissionsMeter, SystemSampler, open_tracker

STEP_S = 2e-3
BLOCKS = 4
BLOCK_S = 20.0  # two measurements of the meter, and samples, fall into each
VALUES = {f"train/value_{index}": 0.1 * index for index in range(30)}  # a record of two ranks


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers every request with 500, after a delay."""

    wait_s = 0.0

    def answer(self) -> None:
        time.sleep(self.wait_s)
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(wait_s: float) -> Iterator[str]:
    handler = type("Handler", (Answering,), {"wait_s": wait_s})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def held_up_ms(root: Path, name: str, uri: str | None, steps: int) -> list[float]:
    """Milliseconds that each step spends in `Tracker.metrics`."""
    config = TrackingConfig(uri=uri)
    tracker = open_tracker(root / name, config, root=root, run_name=name)
    times_ms = []
    for step in range(steps):
        started = time.perf_counter()
        tracker.metrics(VALUES, step=step, epoch=0.1 * step)
        times_ms.append(1e3 * (time.perf_counter() - started))
        time.sleep(STEP_S)
    tracker.close("preempted")
    return times_ms


def step_s(matrix: torch.Tensor) -> float:
    """Processor time of a step of matrix products."""
    started = time.thread_time()
    for _ in range(8):
        matrix = (matrix @ matrix).clamp(0, 1)
    return time.thread_time() - started


def block(matrix: torch.Tensor) -> list[float]:
    times, deadline = [], time.monotonic() + BLOCK_S
    while time.monotonic() < deadline:
        times.append(step_s(matrix))
    return times


def other_threads_s() -> float:
    """Processor time of all threads of this process except the calling one."""
    return time.process_time() - time.thread_time()


def slowdown(start: Callable[[], list[Any]]) -> tuple[float, float, float]:
    """Median seconds of a step without and with observers, and the observers' share of a core."""
    matrix = torch.rand(768, 768)
    block(matrix)  # warm up
    plain: list[float] = []
    observed: list[float] = []
    busy_s = 0.0
    for _ in range(BLOCKS):
        plain += block(matrix)
        observers = start()
        before_s = other_threads_s()
        observed += block(matrix)
        busy_s += other_threads_s() - before_s
        for observer in observers:
            observer.stop()
    return statistics.median(plain), statistics.median(observed), busy_s / (BLOCKS * BLOCK_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder, answering(0) as broken, answering(1) as slow:
        root = Path(folder)
        targets = {
            "SQLite": None,
            "no server": "http://127.0.0.1:9",
            "server takes 1 s": slow,
            "server answers 500": broken,
        }
        for name, uri in targets.items():
            times_ms = held_up_ms(root, name.replace(" ", "-"), uri, options.steps)
            mean, high = statistics.fmean(times_ms), statistics.quantiles(times_ms, n=100)[98]
            rows.append(_row("step held up, ms", name, f"{mean:.3f}", f"{high:.3f}"))

        def start() -> list[Any]:
            observers = [EmissionsMeter(root / "observed", TrackingConfig(country="FRA"), [])]
            samplers = [SystemSampler(root / "observed")]
            for observer in [*observers, *samplers]:
                observer.start()
            return [*observers, *samplers]

        before, after, share = slowdown(start)
        rows.append(
            _row("processor time of a step, s", "without energy and samples", f"{before:.5f}", "")
        )
        rows.append(_row("processor time of a step, s", "with them", f"{after:.5f}", ""))
        percent = 100 * (after / before - 1)
        rows.append(_row("more of it, %", "energy and samples", f"{percent:.2f}", ""))
        rows.append(
            _row("their own time, % of a core", "energy and samples", f"{100 * share:.3f}", "")
        )
    for row in rows:
        print("  ".join(f"{value!s:<28}" for value in row.values()).rstrip())
    if options.out:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def _row(measure: str, of: str, value: str, p99: str) -> dict[str, object]:
    return {"measure": measure, "of": of, "mean or median": value, "99th percentile": p99}


if __name__ == "__main__":
    main()
