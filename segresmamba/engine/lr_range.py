"""`segresmamba lr-range`: raise the learning rate from step to step, and see where the loss breaks.

The run's own network, batches, augmentation, loss and optimizer are used, in this one process. No
run folder is written, and the weights are thrown away.
"""

from __future__ import annotations

import csv
import logging
import math
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import fmean

from segresmamba import data
from segresmamba.config import Config
from segresmamba.engine.distributed import join, micro_batch
from segresmamba.engine.zero import ZeroEngine
from segresmamba.errors import UserError
from segresmamba.storage.atomic import atomic_path, write_text
from segresmamba.task.ranks import Ranks
from segresmamba.task.starting_weights import load_starting_weights
from segresmamba.task.task import Task

logger = logging.getLogger(__name__)

_SMOOTHING = 0.9  # share of the earlier losses in the smoothed one
_BROKEN = 2.0  # a smoothed loss of this many times the lowest one has left the valley
_FEWEST = 10
_MARGIN = 10.0


@dataclass(frozen=True)
class LrRange:
    """The loss at each learning rate that was tried."""

    rates: list[float]
    losses: list[float]
    """Loss of each step."""

    @property
    def smoothed(self) -> list[float]:
        """Running mean of the losses, with exponential weights."""
        mean, found = 0.0, list[float]()
        for step, loss in enumerate(self.losses, 1):
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            found.append(mean / (1 - _SMOOTHING**step))
        return found

    @property
    def is_broken(self) -> bool:
        """Whether the last loss is not finite, or far above the lowest one."""
        last = self.smoothed[-1]
        return not math.isfinite(last) or last > _BROKEN * min(self.smoothed)

    @property
    def suggested(self) -> float:
        """A tenth of the rate at which the smoothed loss is lowest.

        Raises:
            UserError: If the loss broke before it could be measured.
        """
        finite = [
            (loss, rate)
            for loss, rate in zip(self.smoothed, self.rates, strict=True)
            if math.isfinite(loss)
        ]
        if len(finite) < _FEWEST:
            raise UserError(
                "the loss breaks too early to find a learning rate",
                where="segresmamba lr-range",
                got=f"{len(finite)} steps with a finite loss, up to a rate of {self.rates[-1]:.2g}",
                remedy="start lower with --lowest, or look for the cause with train.precision=fp32",
            )
        return min(finite)[1] / _MARGIN

    def write(self, folder: Path) -> list[Path]:
        """Write lr-range.csv and lr-range.png; return their paths."""
        from matplotlib.figure import Figure  # slow to import, and training needs none

        numbers, picture = folder / "lr-range.csv", folder / "lr-range.png"
        folder.mkdir(parents=True, exist_ok=True)
        table = StringIO()
        rows = zip(self.rates, self.losses, self.smoothed, strict=True)
        csv.writer(table).writerows([("lr", "loss", "smoothed"), *rows])
        write_text(numbers, table.getvalue())
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, ".", color="#999999", label="each step")
        axes.plot(self.rates, self.smoothed, color="#0072B2", label="smoothed")
        axes.axvline(self.suggested, color="#D55E00", label=f"train.lr={self.suggested:.1e}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.set_ylim(0, 1.5 * self.smoothed[0])
        axes.legend()
        with atomic_path(picture) as temporary:
            figure.savefig(temporary, format="png", dpi=130)
        return [numbers, picture]


def lr_range(
    config: Config, *, steps: int = 100, lowest: float = 1e-6, highest: float = 1.0
) -> LrRange:
    """Train with a learning rate that rises exponentially, until the loss breaks.

    Args:
        config: A run's configuration.
        steps: Optimizer steps from the lowest to the highest rate.
        lowest: The first rate.
        highest: The last one.

    Raises:
        UserError: For settings or data that cannot be trained.
    """
    if lowest >= highest:
        raise UserError(
            "the learning rate has to rise",
            where="--lowest, --highest",
            got=f"{lowest:g}, {highest:g}",
            remedy="give a --highest above --lowest, such as a million times as much",
        )
    training = _Training(config)
    found = LrRange([], [])
    for step in range(steps):
        lr = lowest * (highest / lowest) ** (step / (steps - 1))
        found.rates.append(lr)
        found.losses.append(training.step(lr))
        logger.info("step %d/%d  lr %.2e  loss %.4f", step + 1, steps, lr, found.losses[-1])
        if found.is_broken:
            return found
    logger.warning("the loss did not break up to a rate of %g: try more with --highest", highest)
    return found


class _Training:
    """The run's training in this one process."""

    def __init__(self, config: Config) -> None:
        if config.data.workers:
            data.prepare_readers()
        self._ranks = Ranks.from_environment(config.train.device)
        task = Task.from_config(config)
        network, self._config = task.network(), task.config
        train, loaded = task.config.train, list[str]()
        if train.init_from is not None:
            channels = len(task.dataset.channel_names)
            loaded += load_starting_weights(train.init_from, network, channels, task).taken
        crops = micro_batch(config, self._ranks.world_size)
        join(self._ranks, train.threads)
        self._engine = ZeroEngine(network, config, self._ranks, loaded)
        self._loss = task.loss()
        self._loss.step = train.max_steps  # after its warm-up
        self._batches = data.make_loader(
            task.dataset,
            task.split["train"],
            config.data,
            config.seed,
            rank=0,
            world_size=1,
            micro_batch=crops,
            start_index=0,
        )

    def step(self, lr: float) -> float:
        """Train one step, and return its loss before the step."""
        losses = []
        for _ in range(self._config.train.accumulation):
            batch = next(self._batches).to(self._ranks.device)
            x_BCDHW, label_BDHW = data.augment(batch, self._config.augment, self._config.seed)
            loss = self._loss(self._engine.forward(x_BCDHW), label_BDHW)
            self._engine.backward(loss, lr)
            losses.append(float(loss.detach()))
        return fmean(losses)
