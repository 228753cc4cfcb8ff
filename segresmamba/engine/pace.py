"""Where the time of a step goes: waiting for data, or computing."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from segresmamba.config import Config
from segresmamba.engine.distributed import Ranks, mean_over_ranks


class Pace:
    """Loss and clocks of the steps since the last record; validation and saving do not count.

    Args:
        config: For the voxels of a step.
        ranks: This process.
    """

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self._voxels = config.train.batch_size * math.prod(config.data.patch)
        self._device = ranks.device
        self._reset()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time one step; the caller leaves it with the device idle (`count_loss` waits for it)."""
        started = time.perf_counter()
        yield
        self._step_s += time.perf_counter() - started
        self._steps += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the enclosed part of a step as waiting for data."""
        started = time.perf_counter()
        yield
        self._wait_s += time.perf_counter() - started

    def count_loss(self, losses: list[torch.Tensor]) -> bool:
        """Add a step's loss, the mean over its accumulation steps; whether it is finite."""
        loss = float(torch.stack(losses).mean())
        self._loss_sum += loss
        return math.isfinite(loss)

    def metrics(self) -> dict[str, float]:
        """Means per step since the last call (collective: the loss is the mean over ranks)."""
        step_s, wait_s = self._step_s / self._steps, self._wait_s / self._steps
        values = {
            "train/loss": mean_over_ranks(self._loss_sum / self._steps, self._device),
            "time/step_s": step_s,
            "time/data_wait_s": wait_s,
            "throughput/voxels_per_s": self._voxels / step_s,
        }
        self._reset()
        return values

    def _reset(self) -> None:
        self._steps = 0
        self._step_s = self._wait_s = self._loss_sum = 0.0
