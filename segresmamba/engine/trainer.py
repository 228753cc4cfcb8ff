"""Train one network: the loop, and what each rank of a job does around it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import torch

from segresmamba import data, models
from segresmamba.config import Config
from segresmamba.engine import checkpoint
from segresmamba.engine.distributed import (
    Ranks,
    any_rank,
    gather,
    join,
    micro_batch,
    wait_for_all,
)
from segresmamba.engine.evaluation import Summary, evaluate_cases
from segresmamba.engine.losses import build_loss
from segresmamba.engine.pace import Pace
from segresmamba.engine.runfolder import RunFolder
from segresmamba.engine.schedule import learning_rate
from segresmamba.engine.setup import Task
from segresmamba.engine.zero import ZeroEngine
from segresmamba.tracking import (
    EmissionsMeter,
    NullTracker,
    Status,
    Tracker,
    open_tracker,
    peak_memory,
)

logger = logging.getLogger(__name__)

_stop_requested = False


def request_stop() -> None:
    """Ask the running `train`, or the one about to run, to save and return at its next step.

    Safe in a signal handler: it sets a flag. The ranks agree on it at a step boundary, because a
    checkpoint is written by all of them together.
    """
    global _stop_requested  # noqa: PLW0603 - a signal handler has nothing else to reach the loop by
    _stop_requested = True


def train(config: Config) -> dict[str, Any]:
    """Train as configured, from the run's last checkpoint if there is one.

    Every rank of the job calls this; see `engine.distributed` for the variables that tell them
    apart.

    Returns:
        status ("finished" or "preempted"), step reached, run folder, and the last validation's mean
        Dice if there was one.

    Raises:
        UserError: For settings, data or checkpoints that the user has to correct.
    """
    global _stop_requested  # noqa: PLW0603
    ranks = Ranks.from_environment()
    micro_batch(config, ranks.world_size)
    task = Task.of(config)  # what cannot be trained is refused before anything is written
    join(ranks, config.train.threads)
    folder = RunFolder.prepare(config) if ranks.is_main else RunFolder.of(config)
    meter = EmissionsMeter(folder.path, config.tracking) if ranks.is_node_main else None
    tracker = _tracker(config, folder, ranks)
    status: Status = "failed"
    try:
        if meter:
            meter.start()
        trainer = Trainer(task, ranks, folder, tracker)
        status = trainer.run()
        _log_energy(meter, tracker, ranks, trainer)
    finally:
        _stop_requested = False
        if meter:
            meter.stop()
        tracker.close(status)
    return {
        "status": status,
        "step": trainer.step,
        "folder": str(folder.path),
        "dice_mean": trainer.last_dice,
        "ui_hint": tracker.ui_hint,
    }


class Trainer:
    """One rank's part of a run.

    Args:
        task: What is trained.
        ranks: This process; it has joined the process group.
        folder: The run's folder.
        tracker: Where metrics go; a null tracker on all ranks but the first.
    """

    def __init__(self, task: Task, ranks: Ranks, folder: RunFolder, tracker: Tracker) -> None:
        self.task, self.ranks, self.folder, self.tracker = task, ranks, folder, tracker
        self.config = config = task.config
        self.loss = build_loss(config, task.dataset.labels)
        network = task.network()
        self.shapes = checkpoint.shapes_of(network)
        self.parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
        self.engine = ZeroEngine(network, config, ranks)
        self.step = self._resume()
        self.best_dice = self._best_so_far()
        self.last_dice: float | None = None

    def run(self) -> Status:
        """Train to max_steps or until asked to stop; "finished" or "preempted"."""
        self._describe()
        config = self.config.train
        if self.step < config.max_steps:
            batches = self._batches()
            pace = Pace(self.config, self.ranks)
            for _ in range(self.step, config.max_steps):
                self._train_step(batches, pace)
                if any_rank(_stop_requested, self.ranks.device):
                    self._save()
                    logger.warning("asked to stop: saved step %d", self.step)
                    return "preempted"
                if self.step % (config.validate_every or math.inf) == 0:
                    self._validate()
                if self.step % config.checkpoint_every == 0:
                    self._save()
            if self.step % (config.validate_every or math.inf) != 0:
                self._validate()
            self._save()
        return "finished"

    def _train_step(self, batches: Iterator[data.Batch], pace: Pace) -> None:
        config = self.config.train
        lr = learning_rate(self.step, config)
        losses = []
        with pace.step():
            for _ in range(config.accumulation):
                with pace.waiting():
                    batch = next(batches)
                x_BCDHW, label_BDHW = data.augment(
                    batch.to(self.ranks.device), self.config.augment, self.config.seed
                )
                loss = self.loss(self.engine.forward(x_BCDHW), label_BDHW)
                self.engine.backward(loss, lr)
                losses.append(loss.detach())
            pace.count_loss(losses)
        self.step += 1
        if self.step % config.log_every == 0 or self.step == config.max_steps:
            self._log_step(pace, lr)

    def _log_step(self, pace: Pace, lr: float) -> None:
        values = pace.metrics()
        values |= {"train/lr": lr, "train/gradient_norm": self.engine.gradient_norm}
        memory = gather(peak_memory(), self.ranks)
        values |= {key: max(rank[key] for rank in memory) for key in memory[0]}
        self.tracker.metrics(values, step=self.step, epoch=self._epoch())
        logger.info(
            "step %d/%d  loss %.4f  %.2f s/step  %.0f %% data wait  %s left",
            self.step,
            self.config.train.max_steps,
            values["train/loss"],
            values["time/step_s"],
            100 * values["time/data_wait_s"] / values["time/step_s"],
            _minutes((self.config.train.max_steps - self.step) * values["time/step_s"]),
        )

    def _validate(self) -> None:
        """Whole-volume metrics of the held-out fold on a plain copy of the weights.

        The copy is exactly what is saved as best weights; under ZeRO stage 3 it is also the only
        way, since ranks with volumes of different size would run different numbers of (collective)
        forward passes.
        """
        started = time.monotonic()
        weights = self.engine.weights()
        network = self.task.network()
        network.load_state_dict(weights)
        mine = self.task.split["val"][self.ranks.rank :: self.ranks.world_size]
        results = evaluate_cases(
            network.to(self.ranks.device), self.task.dataset, mine, self.config, self.ranks.device
        )
        summary = Summary.of([case for part in gather(results, self.ranks) for case in part])
        dice = self.last_dice = summary.mean.dice
        if self.ranks.is_main:
            values = {f"validation/{key}": value for key, value in summary.metrics().items()}
            values["time/validation_s"] = time.monotonic() - started
            self.tracker.metrics(values, step=self.step, epoch=self._epoch())
            logger.info("step %d  validation Dice %.4f", self.step, dice)
            if dice > self.best_dice:
                self.best_dice = dice
                checkpoint.save_weights(self.folder.best, weights, step=self.step, dice=dice)

    def _save(self) -> None:
        checkpoint.save_checkpoint(
            self.folder.checkpoints,
            self.engine,
            self._meta(self.step),
            self.ranks,
            self.config.train.keep_last,
        )
        self.tracker.flush()

    def _resume(self) -> int:
        step = checkpoint.latest_step(self.folder.checkpoints)
        if step is None:
            return 0
        checkpoint.load_checkpoint(
            self.folder.checkpoints, self.engine, self._meta(step), self.ranks
        )
        logger.info("continuing from step %d", step)
        return step

    def _meta(self, step: int) -> checkpoint.Meta:
        stage = self.config.train.zero_stage
        return checkpoint.Meta(step, self.ranks.world_size, stage, self.shapes)

    def _best_so_far(self) -> float:
        if not self.folder.best.exists():
            return -math.inf
        facts = torch.load(self.folder.best, map_location="meta", weights_only=True)
        return float(facts["dice"])

    def _batches(self) -> Iterator[data.Batch]:
        return data.make_loader(
            self.task.dataset,
            self.task.split["train"],
            self.config.data,
            self.config.seed,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            micro_batch=micro_batch(self.config, self.ranks.world_size),
            start_index=self.step * self.config.train.batch_size,
        )

    def _epoch(self) -> float:
        crops = len(self.task.split["train"]) * self.config.data.crops_per_case
        return self.step * self.config.train.batch_size / crops

    def _describe(self) -> None:
        """Log once, and tag the run with, everything that was chosen for the user."""
        config, device = self.config, self.ranks.device
        tags = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "world_size": str(self.ranks.world_size),
            "zero_stage": str(config.train.zero_stage),
            "precision": config.train.precision,
            "store_codec": self.task.dataset.codec,
            "dataset_digest": self.task.dataset.digest,
            "parameters": str(self.parameters),
            "scan_backend": models.scan_backend(self.engine.network, device),
        }
        self.tracker.tags(tags)
        logger.info("  ".join(f"{key}={value}" for key, value in tags.items()))


def _tracker(config: Config, folder: RunFolder, ranks: Ranks) -> Tracker:
    if not ranks.is_main:
        return NullTracker()
    tracker = open_tracker(
        folder.path, config.tracking, root=config.run.root, run_name=folder.path.name
    )
    tracker.params(config.model_dump(mode="json"))
    tracker.artifact(folder.config)
    return tracker


def _log_energy(
    meter: EmissionsMeter | None, tracker: Tracker, ranks: Ranks, trainer: Trainer
) -> None:
    """Record the energy of all nodes and restarts, which the run's ledger sums."""
    if meter:
        meter.stop()
    wait_for_all()
    if meter and ranks.is_main:
        totals = {f"energy/{key}": value for key, value in meter.totals().items()}
        tracker.metrics(totals, step=trainer.step)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
