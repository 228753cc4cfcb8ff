"""The measurement of one network, in the process that `suite` starts for it.

    python -m segresmamba.bench.worker RUN_FOLDER MEASUREMENT_AS_JSON

The configuration lies in the run folder. result.json is written there after each stage, so that
the results of finished stages are there even if this process is killed.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from segresmamba import data
from segresmamba.bench.memory import PeakMemory, lift_limit, limit_memory
from segresmamba.bench.result import (
    REFERENCE_CHANNELS,
    REFERENCE_CLASSES,
    REFERENCE_PATCH,
    REFERENCE_PRECISION,
    Result,
)
from segresmamba.bench.synthetic import synthetic_batches, synthetic_labels
from segresmamba.config import Config, read_config
from segresmamba.engine.distributed import join
from segresmamba.engine.zero import ZeroEngine, import_deepspeed
from segresmamba.models import TriOrientedMamba
from segresmamba.planner.footprint import SavedBytes, fake_footprint
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.classes import Classes
from segresmamba.task.losses import build_loss
from segresmamba.task.memory_errors import ran_out
from segresmamba.task.precision import Autocast
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import Task, build_network, scan_backend
from segresmamba.tracking import EmissionsMeter
from segresmamba.tracking.memory import BYTES_PER_GIB

RESULT_NAME = "result.json"
WARM_UP_STEPS = {"cpu": 1, "cuda": 5}


@dataclass(frozen=True)
class Measurement:
    """What to measure, besides the configuration."""

    model: str
    """Name of the preset."""
    steps: int
    """Steps to time, after some that warm up."""
    memory_gib: float | None
    """Limit of the memory; None sets no limit."""
    with_store: bool
    """Also train from data.store."""


def main() -> None:
    """Measure; the exit code is 0 if a result was written, even that of a failure."""
    folder, measurement = RunFolder(Path(sys.argv[1])), Measurement(**json.loads(sys.argv[2]))
    result = Result(measurement.model)
    try:
        measure(read_config(folder.config), measurement, folder, result)
    except Exception as error:
        lift_limit()
        traceback.print_exc()
        result.status = "out of memory" if ran_out(error) else "failed"
        first_line = (str(error).strip().splitlines() or ["no message"])[0]
        result.note = f"{type(error).__name__}: {first_line[:300]}"
    result.save(folder.path / RESULT_NAME)
    sys.stdout.flush()
    sys.stderr.flush()


def measure(config: Config, measurement: Measurement, folder: RunFolder, result: Result) -> None:
    """Fill in a result, stage by stage; the first stage is cheap and cannot run out of memory."""
    ranks = Ranks.from_environment(config.train.device)
    join(ranks, config.train.threads)
    path = folder.path / RESULT_NAME
    _count(config, ranks.device, result)
    result.save(path)
    training = Training(config, ranks, measurement)
    _train_on_noise(training, EmissionsMeter(folder.path, config.tracking), result)
    result.save(path)
    if training.task is not None:
        batches = data.make_loader(
            training.task.dataset,
            training.task.split["train"],
            config.data,
            config.seed,
            rank=0,
            world_size=1,
            micro_batch=config.train.batch_size,
            start_index=0,
        )
        training.warm_up(batches)
        result.loaded_step_s, result.data_wait_s = training.timed(batches)


class Training:
    """A network in training, with the engine, loss and augmentation that `train` uses.

    Args:
        config: The run's configuration.
        ranks: This process.
        measurement: How many steps to time, and whether to read the store.
    """

    def __init__(self, config: Config, ranks: Ranks, measurement: Measurement) -> None:
        self.config, self.steps, self.device = config, measurement.steps, ranks.device
        self.task = Task.from_config(config) if measurement.with_store else None
        self.labels: Mapping[str, int] = (
            self.task.dataset.labels if self.task else synthetic_labels(config)
        )
        self.channels = len(self.task.dataset.channel_names) if self.task else REFERENCE_CHANNELS
        self._loss = build_loss(config, self.labels)
        # Libraries and kernels are loaded first: their memory should not count as the network's.
        import_deepspeed(ranks)
        if self.device.type == "cpu":
            scan = Autocast(TriOrientedMamba(8), config.train.precision)
            output = scan(torch.randn(1, 8, 4, 4, 4))
            torch.autograd.backward([output.sum()])
        limit_memory(measurement.memory_gib, self.device)
        self.memory = PeakMemory(self.device)
        network = build_network(
            config, self.channels, Classes.from_labels(config, self.labels).channels
        )
        self._engine = ZeroEngine(network, config, ranks)

    def step(self, batch: data.Batch) -> None:
        """Train one step, as `engine.trainer` does, and wait for the device to finish it."""
        x_BCDHW, label_BDHW = data.augment(
            batch.to(self.device), self.config.augment, self.config.seed
        )
        loss = self._loss(self._engine.forward(x_BCDHW), label_BDHW)
        self._engine.backward(loss, self.config.train.lr)
        float(loss.detach())  # waits for the device

    def saved_gib(self, batch: data.Batch) -> float:
        """Memory that a forward pass keeps for the backward pass."""
        x_BCDHW = batch.to(self.device).image_BCDHW
        network = self._engine.network.train()
        with SavedBytes([*network.parameters(), *network.buffers(), x_BCDHW]) as saved:
            Autocast(network, self.config.train.precision)(x_BCDHW)
        return saved.total / BYTES_PER_GIB

    def warm_up(self, batches: Iterator[data.Batch]) -> None:
        """Train some steps that do not count."""
        for batch in itertools.islice(batches, WARM_UP_STEPS[self.device.type]):
            self.step(batch)

    def timed(self, batches: Iterator[data.Batch]) -> tuple[float, float]:
        """Mean time of a step, and of waiting for its batch, in seconds."""
        started, wait_s = time.perf_counter(), 0.0
        for _ in range(self.steps):
            asked = time.perf_counter()
            batch = next(batches)
            wait_s += time.perf_counter() - asked
            self.step(batch)
        return (time.perf_counter() - started) / self.steps, wait_s / self.steps


def _count(config: Config, device: torch.device, result: Result) -> None:
    """Fill in what is the same on every machine."""
    reference = config.model_copy(
        update={"data": config.data.model_copy(update={"patch": REFERENCE_PATCH})}
    )
    network = build_network(reference, REFERENCE_CHANNELS, REFERENCE_CLASSES)
    result.scan_backend = scan_backend(config, network, device)
    shape = (1, REFERENCE_CHANNELS, *REFERENCE_PATCH)
    counted = fake_footprint(network, shape, REFERENCE_PRECISION)
    on_cuda = fake_footprint(network, shape, REFERENCE_PRECISION, "cuda")
    result.trained_parameters = counted.trained_parameters
    result.dead_parameters = counted.dead_parameters
    result.reference_gmacs = counted.macs / 1e9
    result.reference_saved_gib = counted.saved_bytes / BYTES_PER_GIB
    result.reference_saved_cuda_gib = on_cuda.saved_bytes / BYTES_PER_GIB


def _train_on_noise(training: Training, meter: EmissionsMeter, result: Result) -> None:
    """Measure memory, time and energy of steps that do not wait for data."""
    batches = synthetic_batches(training.config, training.channels, len(training.labels))
    result.saved_gib = training.saved_gib(next(batches))
    training.warm_up(batches)
    training.memory.forget()  # compiling and tuning kernels may have taken more than training
    meter.start()
    result.step_s, _ = training.timed(batches)
    meter.stop()
    result.peak_gib = training.memory.gib()
    totals = meter.totals()
    if totals.get("duration_s"):
        # The meter also ran before and after the steps, so its energy is scaled by the time.
        share = 1000 * result.step_s / totals["duration_s"]
        result.wh_per_1000_steps = 1e3 * totals["energy_kwh"] * share
        result.co2e_g_per_1000_steps = 1e3 * totals["emissions_kg"] * share
        result.power = meter.power


if __name__ == "__main__":
    main()
