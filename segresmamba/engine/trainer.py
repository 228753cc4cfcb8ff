"""Train one network: the loop, and what each rank of a job does before and after it.

All ranks run this code. What they decide together (to stop, to validate) goes through a collective
call, because a rank that decides alone leaves the others waiting.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segresmamba import data
from segresmamba.config import Config
from segresmamba.engine.bad_cases import BadCases
from segresmamba.engine.checkpoints import checkpoint
from segresmamba.engine.distributed import (
    from_main,
    gather,
    join,
    leave_abruptly,
    micro_batch,
    wait_for_all,
)
from segresmamba.engine.layout import choose_layout
from segresmamba.engine.observers import (
    NodeObservers,
    log_best_model,
    log_memory,
    open_run_tracker,
)
from segresmamba.engine.outcome import Crops, QueuedStep
from segresmamba.engine.recipe import checked_loss
from segresmamba.engine.schedule import learning_rate
from segresmamba.engine.skipped_steps import SkippedSteps
from segresmamba.engine.stop import forget_request, stop_requested
from segresmamba.engine.timing import StepTimer, WaitAdvice
from segresmamba.engine.watchdog import Watchdog
from segresmamba.engine.zero import ZeroEngine
from segresmamba.errors import DataError, UserError
from segresmamba.planner.out_of_memory import out_of_memory
from segresmamba.storage.atomic import write_text
from segresmamba.storage.patience import patience
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.losses import SegmentationLoss
from segresmamba.task.memory_errors import ran_out
from segresmamba.task.ranks import Ranks
from segresmamba.task.starting_weights import starting_weights
from segresmamba.task.task import Task, scan_backend
from segresmamba.task.warm_up import warm_up
from segresmamba.task.weights import WeightsFacts, read_facts, save_weights, shapes_of
from segresmamba.tracking import (
    STOPPED_EARLY,
    PhaseMemory,
    Status,
    StepLog,
    Tracker,
    finished_step,
    finished_text,
    log_as,
    memory_metrics,
    run_hint,
)

logger = logging.getLogger(__name__)

_WAIT = "time/data_wait_s"
_DEVICE_PEAK = "memory/device_peak_allocated_gib"


def train(config: Config) -> dict[str, Any]:
    """Train as configured, from the run's last checkpoint if there is one.

    Every rank of the job calls this; `task.ranks` reads from the environment which one it is.

    Returns:
        status ("finished" or "preempted"), step reached, run folder, the last validation's mean
        Dice if there was one, and ui_hint, the command that shows the run.

    Raises:
        UserError: For settings, data or checkpoints that the user has to correct.
    """
    ranks = Ranks.from_environment(config.train.device, config.cluster.gpus_per_node)
    log_as(config.tracking.logs, ranks.rank)
    memory = PhaseMemory()
    if config.data.workers:
        data.prepare_readers()
    # All checks come before the run folder is made, so that a mistake leaves nothing behind.
    micro_batch(config, ranks.world_size)
    task = Task.from_config(config)
    network, loss = task.network(), checked_loss(task)
    backend = scan_backend(config, network, ranks.device)
    folder = RunFolder.from_config(config)
    start = starting_weights(task, network, folder)
    task = task.staged()
    join(ranks, config.train.threads)
    if ranks.is_main:
        folder.enter(config)
    wait_for_all()
    if (finished := _finished(task.config, folder, ranks)) is not None:
        forget_request()
        return finished
    observers = NodeObservers(config, folder, ranks)
    tracker = open_run_tracker(task, folder, ranks)
    status: Status = "failed"
    try:
        if ranks.is_main:
            folder.remove_leftovers()  # the tracker holds the run's lock from here on
            if start:
                start.keep(folder.init_from)
        observers.start()
        loaded = from_main(start.taken if start else ())
        trainer = Trainer(task, network, loss, ranks, folder, tracker, memory, loaded)
        origin = {"init_from": str(start)} if start else {}
        tracker.tags(trainer.choices | {"scan_backend": backend} | origin)
        ended = trainer.run()
        patches = trainer.step * config.train.batch_size
        observers.log_energy(tracker, step=trainer.step, patches=patches)
        log_memory(memory, tracker, folder, ranks, trainer.step)
        if ended == "finished" and ranks.is_main:
            log_best_model(config, tracker, folder)
        status = ended  # only now: if the lines above fail, the run has failed
    except Exception as error:
        if isinstance(error, UserError) or not ran_out(error):
            raise
        raise out_of_memory(error, task, ranks, folder.logs, memory) from error
    finally:
        forget_request()
        if status == "failed":
            leave_abruptly()
        observers.stop()
        tracker.close(status)
    return _result(status, trainer.step, folder, trainer.last_dice, tracker.ui_hint())


def _result(
    status: Status, step: int, folder: RunFolder, dice: float | None, hint: str
) -> dict[str, Any]:
    return {
        "status": status,
        "step": step,
        "folder": str(folder.path),
        "dice_mean": dice,
        "ui_hint": hint,
    }


def _finished(config: Config, folder: RunFolder, ranks: Ranks) -> dict[str, Any] | None:
    """The result of a run that has finished before; None if something is left to do (collective).

    Such a run is not started: a start would count as its own in the journal and the energy.
    """
    step = from_main(finished_step(folder.path, config.train) if ranks.is_main else None)
    if step is None:
        return None
    if ranks.is_main:
        logger.warning(finished_text(folder.path, step))
    dice = json.loads(folder.validation(step).read_text()).get("validation/dice/mean")
    hint = run_hint(folder.path, config.tracking, config.run.root)
    return _result("finished", step, folder, dice, hint)


class Trainer:
    """One rank's part of a run.

    Args:
        task: What is trained.
        network: The task's network, with its initial weights.
        loss: The task's loss.
        ranks: This process; it has joined the process group.
        folder: The run's folder.
        tracker: Where metrics go; a null tracker on all ranks but the first.
        memory: Peak memory by phase.
        loaded: Names of the weights that `train.init_from` gave.
    """

    def __init__(
        self,
        task: Task,
        network: nn.Module,
        loss: SegmentationLoss,
        ranks: Ranks,
        folder: RunFolder,
        tracker: Tracker,
        memory: PhaseMemory,
        loaded: Collection[str] = (),
    ) -> None:
        self.task, self.ranks, self.folder, self.tracker = task, ranks, folder, tracker
        self.memory = memory
        self.bad_cases = BadCases(task, ranks, tracker)
        self.config = config = task.config
        self.loss = loss
        self.shapes = shapes_of(network)
        self.parameters = sum(p.numel() for p in network.parameters())
        warm_up(network, config.train.precision, ranks)
        wait_for_all()  # the first rank of a node compiles for the others, too
        self.layout = choose_layout(task, network, ranks)
        self.engine = ZeroEngine(network, config, ranks, loaded)
        self.skipped = SkippedSteps(config.train, folder, ranks)
        self.watchdog = Watchdog(config.train.hang_timeout_s, folder.logs, ranks.rank)
        keep = config.train.keep_last
        self.checkpoints = checkpoint.Checkpoints(folder, ranks, keep, tracker.flush)
        self.step = self._resume()
        self.queued: QueuedStep | None = None
        """The last step, while the host does not know yet what it has come to."""
        self.gradient_norm = 0.0
        """Of the last step that is known."""
        self._begin_attempt()
        self.last_dice: float | None = None
        style, steps = config.tracking.logs, config.train.max_steps
        self.wait_advice = WaitAdvice(config.data)
        self.step_log = StepLog(style, steps, enabled=ranks.is_main)

    @property
    def choices(self) -> dict[str, str]:
        """Choices that the configuration leaves open, to be logged once and tagged on the run."""
        device = self.ranks.device
        return {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "world_size": str(self.ranks.world_size),
            "zero_stage": str(self.config.train.zero_stage),
            "precision": self.config.train.precision,
            **({"layout": self.layout} if self.layout else {}),
            "store_codec": self.task.dataset.codec,
            "dataset_digest": self.task.dataset.digest,
            "parameters": str(self.parameters),
        }

    def run(self) -> Status:
        """Train to max_steps, or until asked to stop.

        Returns:
            "finished" or "preempted".
        """
        logger.info("  ".join(f"{key}={value}" for key, value in self.choices.items()))
        self.memory.enter("train")
        with self.step_log, self.watchdog, patience(self.config.data.patience_s):
            # A job that was killed after saving this step has not validated it.
            if self.step and self._validation_is_due() and not self._validate():
                return "preempted"
            batches = data.make_loader(
                self.task.dataset,
                self.task.split["train"],
                self.config.data,
                self.config.seed,
                rank=self.ranks.rank,
                world_size=self.ranks.world_size,
                micro_batch=micro_batch(self.config, self.ranks.world_size),
                start_index=self.step * self.config.train.batch_size,
            )
            # Readers end here, not with the process, which would leave their semaphores behind.
            with closing(batches):
                return self._train(batches)

    def _train(self, batches: Iterator[data.Batch]) -> Status:
        config, timer = self.config.train, StepTimer(self.config, self.ranks)
        while self.step < config.max_steps and not self._ends_early():
            stop = self._train_step(batches, timer)
            self.watchdog.beat()
            due = self._validation_is_due()
            # Before the validation, which takes long: if the job is killed, this step is not lost.
            if stop or due or self.step % config.checkpoint_every == 0:
                self._save()
            self.checkpoints.go_on(wait=stop or due or self.step == config.max_steps)
            self.watchdog.beat()
            if stop:
                logger.warning("asked to stop: saved step %d", self.step)
                return "preempted"
            if due and not self._validate():
                return "preempted"
        return "finished"

    def _train_step(self, batches: Iterator[data.Batch], timer: StepTimer) -> bool:
        """Queue one step, and return whether some rank was asked to stop."""
        config = self.config.train
        lr = learning_rate(self.step, config)
        losses, crops, stop = list[Tensor](), list[Crops](), False
        self.loss.step = self.step
        with timer.step():
            for _ in range(config.accumulation):
                with timer.waiting():
                    batch = next(batches)
                self.bad_cases.add(batch.damaged)
                crops.append((batch.index_B.tolist(), batch.case_ids))
                x_BCDHW, label_BDHW = data.augment(
                    batch.to(self.ranks.device), self.config.augment, self.config.seed
                )
                loss = self.loss(self.engine.forward(x_BCDHW), label_BDHW)
                # What the step before has come to, while the weights are still its own.
                stop |= self._learn(timer)
                self.engine.backward(loss, lr)
                losses.append(loss.detach())
            self.step += 1
            self.queued = QueuedStep(
                self.step, lr, crops, losses, self.engine.gradient_norm, stop=stop_requested()
            )
            if stop or self._is_recorded():
                stop |= self._learn(timer)
        if self.step % config.log_every == 0 or self.step == config.max_steps:
            self._log_step(timer, lr)
        return stop

    def _is_recorded(self) -> bool:
        """Whether this step is followed by a record, a checkpoint or a validation."""
        config = self.config.train
        every = (config.log_every, config.checkpoint_every, config.validate_every or math.inf)
        return self.step == config.max_steps or any(self.step % steps == 0 for steps in every)

    def _learn(self, timer: StepTimer) -> bool:
        """Read what the queued step has come to, and return whether some rank was asked to stop."""
        if self.queued is None:
            return False
        queued, self.queued = self.queued, None
        outcome = queued.outcome()
        self.gradient_norm = outcome.gradient_norm
        if math.isfinite(outcome.gradient_norm):
            timer.count_loss(outcome.loss)
        self.skipped.count(queued, outcome.gradient_norm, self.engine)
        if self.skipped.too_many(queued.step):
            raise self._diverged(queued.lr)
        return outcome.stop

    def _diverged(self, lr: float) -> UserError:
        self.checkpoints.go_on(wait=True)
        saved = max(self.folder.saved_steps(), default=None)
        last = f"the last checkpoint is that of step {saved}" if saved else "there is no checkpoint"
        return UserError(
            "the loss or its gradient was not a finite number in too many steps",
            where=f"step {self.step}; the batches are in {self.folder.skipped}",
            got=f"{self.skipped.total} steps skipped, the last {self.skipped.in_a_row} in a row; "
            f"lr {lr:.2g}, precision {self.config.train.precision}",
            remedy=f"`segresmamba debug-batch {self.folder.path}` repeats the last one and says "
            "where it comes from; lower train.lr, raise train.warmup_steps, or take "
            f"train.precision=fp32, under another run.name; {last}",
        )

    def _log_step(self, timer: StepTimer, lr: float) -> None:
        self.bad_cases.agree()
        values = timer.metrics()
        values |= {"train/lr": lr, "train/gradient_norm": self.gradient_norm}
        if self.skipped.total:
            values["train/skipped_steps"] = self.skipped.total
        ranks = gather((values[_WAIT], self.memory.peaks()), self.ranks)
        # The rank that waits longest counts, since the others wait for it.
        values[_WAIT] = max(wait_s for wait_s, _ in ranks)
        memory = memory_metrics([peaks for _, peaks in ranks])
        if self.ranks.is_main:
            self.wait_advice.record(values["time/step_s"], values[_WAIT])
        values["time/compute_s"] = values["time/step_s"] - values[_WAIT]
        # A metric has one value a step. At the last one it is the peak after validation and saving.
        recorded = values | (memory if self.step < self.config.train.max_steps else {})
        self.tracker.metrics(recorded, step=self.step, epoch=self._epoch())
        shown = {
            "loss": values["train/loss"],
            "step_s": values["time/step_s"],
            "data_wait_s": values[_WAIT],
            "memory_gib": memory.get(_DEVICE_PEAK, memory["memory/host_peak_gib"]),
        }
        dice = {} if self.last_dice is None else {"dice": self.last_dice}
        self.step_log.step(self.step, shown | dice)

    def _ends_early(self) -> bool:
        """Whether `train.patience` validations have brought nothing better than the best weights.

        They are counted from the step of the best weights, so that a run that goes on counts right.
        """
        patience, every = self.config.train.patience, self.config.train.validate_every
        if not (patience and every) or self.step % every:
            return False
        best = from_main(self._best_facts() if self.ranks.is_main else None)
        if best is None or self.step // every - best.step // every < patience:
            return False
        if self.ranks.is_main:
            text = f"step {self.step}: no better Dice than {best.dice:.4f} of step {best.step}"
            logger.info("%s in %d validations: the run ends early", text, patience)
            self.tracker.tags({STOPPED_EARLY: text})
        return True

    def _best_facts(self) -> WeightsFacts | None:
        return read_facts(self.folder.best) if self.folder.best.exists() else None

    def _validation_is_due(self) -> bool:
        config = self.config.train
        reached = self.step == config.max_steps
        every = config.validate_every if self.task.split["val"] else None
        due = reached or self.step % (every or math.inf) == 0
        # Best weights that were found damaged, and deleted, come back by validating once more.
        is_done = self._validation_record.exists() and self.folder.best.exists()
        return due and not from_main(is_done)

    @property
    def _validation_record(self) -> Path:
        return self.folder.validation(self.step)

    def _validate(self) -> bool:
        """Score whole volumes of the held-out fold with a plain copy of the weights.

        The copy is exactly what is saved as best weights. Under ZeRO stage 3 the engine itself
        could not be used: its forward pass is collective, and ranks whose volumes differ in size
        would run different numbers of them.

        Returns:
            False if some rank was asked to stop before the end.
        """
        with self.memory.during("validate"):
            return self._validated()

    def _validated(self) -> bool:
        # What it needs (nibabel, SciPy) takes long to import, and training starts without it.
        from segresmamba.engine.held_out import score_held_out
        from segresmamba.evaluation.score_cases import Summary

        weights, held_out = self.engine.weights(), self.task.split["val"]
        if not held_out:
            if self.ranks.is_main:
                logger.info(
                    "step %d: nothing is held out, the last weights count as best", self.step
                )
                self._keep(weights, None)
                write_text(self._validation_record, "{}")
            return True
        kept = self.folder.scored(self.step)
        scored = score_held_out(
            self.task, weights, self.step, kept, self.ranks, self.watchdog, self.bad_cases
        )
        if scored is None:
            return False
        self.bad_cases.agree()
        if len(scored.results) < len(held_out):
            self._say_left_out(len(held_out) - len(scored.results), len(held_out))
        summary = Summary.from_results(scored.results)
        self.last_dice = summary.mean.dice
        if self.ranks.is_main:
            values = {f"validation/{key}": value for key, value in summary.metrics().items()}
            values["time/validation_s"] = scored.seconds
            self.tracker.metrics(values, step=self.step, epoch=self._epoch())
            self._keep_if_best(weights, summary.mean.dice)
            # The last act: a validation without this file is done again when the run continues.
            write_text(self._validation_record, json.dumps(values))
            kept.unlink(missing_ok=True)
        return True

    def _say_left_out(self, damaged: int, cases: int) -> None:
        text = f"{damaged} of {cases} cases of the held-out fold are damaged"
        if damaged == cases:
            raise DataError(
                "nothing is left to validate",
                where=self.task.dataset.where,
                got=text,
                remedy="run `segresmamba verify --fix` on the store, then the same command",
            )
        if self.ranks.is_main:
            logger.warning("step %d: %s; the mean is that of the others", self.step, text)

    def _keep_if_best(self, weights: dict[str, Tensor], dice: float) -> None:
        best = self._best_facts()
        logger.info("step %d  validation Dice %.4f", self.step, dice)
        if best is None or best.dice is None or dice > best.dice:
            self._keep(weights, dice)

    def _keep(self, weights: dict[str, Tensor], dice: float | None) -> None:
        dataset = self.task.dataset
        facts = WeightsFacts(
            step=self.step,
            dice=dice,
            labels=dataset.labels,
            channel_names=dataset.channel_names,
            preprocessing=dataset.preprocessing,
        )
        save_weights(self.folder.new_best, weights, facts)
        self.folder.remove_former_best()

    def _save(self) -> None:
        with self.memory.during("save"):
            self.checkpoints.save(self.engine, self._meta(self.step))

    def _resume(self) -> int:
        expected = self._meta(0)
        resumed = checkpoint.load_newest(self.folder, self.engine, expected, self.ranks)
        if resumed is None:
            return 0
        found = resumed.meta
        self.skipped.total, self.skipped.in_a_row = found.skipped, found.skipped_in_a_row
        if resumed.skipped:
            reasons = [f"{name}: {error.got}" for name, error in resumed.skipped.items()]
            reasons.append(f"continued from step {found.step}")
            self.tracker.tags({"damaged_checkpoints": "; ".join(reasons)})
        new = "" if found.layout == expected.layout else f", written by {found.layout}"
        logger.info("continuing from step %d%s, on %s", found.step, new, expected.layout)
        return found.step

    def _begin_attempt(self) -> None:
        """Set aside what belongs to steps that are trained again under other settings."""
        if not self.tracker.goes_back(self.step):
            return
        best = self.folder.best
        if best.exists() and read_facts(best).step > self.step:
            logger.warning("the best weights so far are in %s", self.folder.set_results_aside())
        self.tracker.attempt(self.step)

    def _meta(self, step: int) -> checkpoint.Meta:
        return checkpoint.Meta(
            step=step,
            world_size=self.ranks.world_size,
            zero_stage=self.config.train.zero_stage,
            dataset_digest=self.task.dataset.digest,
            shapes=self.shapes,
            skipped=self.skipped.total,
            skipped_in_a_row=self.skipped.in_a_row,
        )

    def _epoch(self) -> float:
        crops = len(self.task.split["train"]) * self.config.data.crops_per_case
        return self.step * self.config.train.batch_size / crops
