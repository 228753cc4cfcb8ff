"""The time of a step, divided into waiting for data and computing."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from segresmamba.config import Config, DataConfig
from segresmamba.engine.distributed import mean_over_ranks
from segresmamba.task.ranks import Ranks

logger = logging.getLogger(__name__)

_WAIT_SHARE = 0.1


class WaitAdvice:
    """Warns once if training waits for its readers, and says what to do.

    Args:
        config: The configuration of the readers.
    """

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._records = 0
        self._given = False

    def record(self, step_s: float, wait_s: float) -> None:
        """Look at a step's mean duration and its wait for data, both in seconds."""
        self._records += 1
        # The first steps wait for readers that have only just started.
        if self._given or self._records == 1 or wait_s <= _WAIT_SHARE * step_s:
            return
        self._given = True
        stage = "" if self._config.stage else ", or copy the cases to the nodes with data.stage"
        logger.warning(
            "%.0f %% of a step is waiting for data: raise data.workers (now %d; each takes a core "
            "of cluster.cpus_per_task)%s",
            100 * wait_s / step_s,
            self._config.workers,
            stage,
        )


class StepTimer:
    """Mean loss and times of the steps since the last record, without validation and saving.

    Args:
        config: The run's configuration, for the number of voxels in a step.
        ranks: This process.
    """

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self._voxels = config.train.batch_size * math.prod(config.data.patch)
        self._device = ranks.device
        self._reset()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time the part of a step for which the host is busy or waits.

        Their sum is the time of the steps only if the last one before `metrics` waits for the
        device at its end.
        """
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

    def count_loss(self, loss: float) -> None:
        """Add the loss of a step that was made."""
        self._loss_sum += loss
        self._losses += 1

    def metrics(self) -> dict[str, float]:
        """Means per step since the last call (collective: the loss is the mean over ranks).

        The loss is nan if all steps were skipped.
        """
        step_s, wait_s = self._step_s / self._steps, self._wait_s / self._steps
        loss = self._loss_sum / self._losses if self._losses else math.nan
        values = {
            "train/loss": mean_over_ranks(loss, self._device),
            "time/step_s": step_s,
            "time/data_wait_s": wait_s,
            "throughput/voxels_per_s": self._voxels / step_s,
        }
        self._reset()
        return values

    def _reset(self) -> None:
        self._steps = self._losses = 0
        self._step_s = self._wait_s = self._loss_sum = 0.0
