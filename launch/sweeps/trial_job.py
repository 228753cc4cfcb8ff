"""A trial of a sweep as a job. In a search it chooses its own settings when it starts.

No controller has to keep running: each trial of a search asks Optuna's study what to try, reports
its validations, stops when it falls behind, and tells the study how it ended. The study and the
trials' records are files on the file system that the jobs share. The study may be in a database.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from launch.failures import tell_mlflow
from launch.jobs.rank import resubmission
from launch.jobs.train_job import RunResult, TrainJob
from launch.run_state import METRIC, is_measured, read_run
from launch.sweeps.search_space import SearchPoint
from launch.sweeps.summary import write_summary
from launch.sweeps.sweep import Sweep
from launch.sweeps.trial import Trial
from segresmamba.config import Config, config_digest, load_config
from segresmamba.errors import ConfigError, LaunchError, UserError
from segresmamba.storage.locks import locked

if TYPE_CHECKING:
    from launch.sweeps.study import Standing, Study

# How often a running trial looks into its own journal.
POLL_S = 2.0
# Held while a study is read or changed.
LOCK = ".study.lock"
_BEHIND = "the sweep's study and summary are not up to date: %s"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialJob:
    """A trial as a picklable, stateless callable."""

    sweep: Path
    """Folder of the sweep."""
    number: int
    """The trial's number."""
    engine: str = "segresmamba.engine"
    """See `TrainJob`."""

    def resolved_config(self) -> Config:
        """The run. In a search the first call chooses its settings."""
        return load_config(chosen(self.sweep, self.number).overrides)

    def __call__(self) -> RunResult:
        """Train as one rank.

        Raises:
            SystemExit: See `TrainJob.run`.
        """
        trial = chosen(self.sweep, self.number)
        if trial.pruned_at is not None:
            # It was preempted while it stopped, so Slurm has started it again.
            return RunResult("pruned", trial.pruned_at, trial.run, ui_hint="")
        job = TrainJob(load_config(trial.overrides), self.engine)
        return job.run(lambda engine: self._train(engine, job.config))

    def checkpoint(self) -> object:
        """Submitit asks for this after a requeue: the same job again, which resumes by itself."""
        return resubmission(self)

    def _train(self, engine: Any, config: Config) -> RunResult:
        sweep = Sweep.read(self.sweep)
        sweep.refuse_changed_presets(sweep.trials[self.number], config)
        is_main = os.environ["RANK"] == "0"
        watched = is_main and sweep.search is not None
        with Watch(sweep, self.number, config, engine.request_stop) if watched else nullcontext():
            result = RunResult.from_engine(engine.train(config))
        if result.status == "preempted":
            # The watch stops a trial as preemption does; only the trial's record tells them apart.
            sweep.recall()
            pruned_at = sweep.trials[self.number].pruned_at
            if pruned_at is None:
                return result
            result = replace(result, status="pruned")
            if is_main:
                from segresmamba.tracking import PRUNED

                tell_mlflow(config, {PRUNED: f"at step {pruned_at}"}, "preempted")
        if is_main:
            self._conclude(result)
        return result

    def _conclude(self, result: RunResult) -> None:
        """Report how the trial ended to the study and the sweep's summary.

        Raises:
            LaunchError: If a search cannot compare the trial.
        """
        try:
            sweep = Sweep.read(self.sweep)
        except (OSError, UserError) as error:  # as while another machine replaces the manifest
            logger.warning(_BEHIND, error)
            return
        trial = sweep.trials[self.number]
        if sweep.search is not None and result.status == "finished":
            history = read_run(trial.folder.path)
            if history is None or not is_measured(history):
                raise LaunchError(
                    "the trial has finished without the number that the search compares",
                    where=f"{METRIC} in {trial.folder.journal}",
                    got=history.last(METRIC) if history else "no journal",
                    remedy="see that the held-out fold (train.fold) has cases, and that they are "
                    "labelled: segresmamba verify STORE",
                )
        try:
            if sweep.search is not None:
                catch_up(sweep)
            sweep.refresh()
            write_summary(sweep)
        except (OSError, UserError) as error:
            # Not the trial's failure, and the next trial or command makes up for it.
            logger.warning(_BEHIND, error)


class Watch:
    """Follows the journal of a running trial, and stops it once it falls behind the others.

    Args:
        sweep: A search.
        number: The trial's number.
        config: The trial's settings.
        stop: Asks the trial to save and stop.
    """

    def __init__(self, sweep: Sweep, number: int, config: Config, stop: Callable[[], None]) -> None:
        self._sweep, self._trial, self._stop = sweep, sweep.trials[number], stop
        self._last_step = config.train.max_steps
        self._curve: dict[int, float] = {}
        self._read = 0
        self._ended = Event()
        self._study: Study | None = None
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(POLL_S):
            try:
                if self._falls_behind():
                    break
            except (OSError, UserError) as error:  # a broken study must not end the trial
                logger.warning("this trial cannot be compared with the others now: %s", error)
        else:
            return
        self._trial.pruned_at = max(self._curve)
        self._sweep.record(self._trial)
        logger.warning("pruned after the validation of step %d", self._trial.pruned_at)
        self._stop()

    def _falls_behind(self) -> bool:
        from segresmamba.tracking import STOPPED_EARLY, read_records

        known, journal = dict(self._curve), self._trial.folder.journal
        for record in read_records(journal, self._read) if journal.exists() else ():
            self._read = record.end
            values = record.body.get("values", {})
            if record.kind == "params":  # where train.epochs has become steps
                self._last_step = int(values["train"]["max_steps"])
            if record.kind == "tags" and STOPPED_EARLY in values:
                self._last_step = 0
            if record.kind == "attempt":  # what it measured after this step counts no longer
                step = record.body["step"]
                self._curve = {at: dice for at, dice in self._curve.items() if at <= step}
            if METRIC in values and record.kind == "metrics":
                # A resumed run may validate a step again; its first value counts.
                self._curve.setdefault(record.body["step"], float(values[METRIC]))
        # After its last step a trial is done, and stopping it would save nothing.
        is_new = self._curve and self._curve != known
        if not is_new or max(self._curve) >= self._last_step:
            return False
        if self._study is None:
            self._study = catch_up(self._sweep)
        return self._study.should_prune(self._trial.number, self._curve)


def chosen(folder: Path, number: int) -> Trial:
    """A trial with its settings. In a search they are chosen now, unless they were before.

    Raises:
        LaunchError: If the storage of the search cannot be used, or every point has been tried.
        ConfigError: If the settings contradict each other.
    """
    trial = Sweep.read(folder).trials[number]
    if trial.overrides:
        return trial
    with locked(folder / LOCK):
        sweep = Sweep.read(folder)
        trial = sweep.trials[number]
        if trial.overrides:  # another rank has chosen them meanwhile
            return trial
        study = _study(sweep)
        study.catch_up(_standings(sweep))
        trial.values = study.propose(number, lambda values: _is_new(sweep, trial, values))
        trial.overrides = sweep.overrides(trial, trial.values)
        trial.digest = config_digest(load_config(trial.overrides))
        sweep.record(trial)
    return trial


def _is_new(sweep: Sweep, trial: Trial, values: SearchPoint) -> bool:
    """Whether no other trial has these values, and they make valid settings."""
    if any(other.values == values for other in sweep.trials):
        return False
    try:
        load_config(sweep.overrides(trial, values))
    except ConfigError as error:
        logger.warning("left out: %s", error)
        return False
    return True


def catch_up(sweep: Sweep) -> Study:
    """Report to the study of a search what it has missed; return the study.

    Raises:
        LaunchError: If its storage cannot be used.
    """
    study = _study(sweep)
    with locked(sweep.folder / LOCK):
        # Read under the lock. Otherwise a trial that is choosing just now looks as if its process
        # had died before it wrote its record.
        sweep.recall()
        study.catch_up(_standings(sweep))
    return study


def _study(sweep: Sweep) -> Study:
    from launch.sweeps.study import Study

    assert sweep.search is not None
    return Study(sweep.name, sweep.folder, sweep.search.space, sweep.search.storage)


def _standings(sweep: Sweep) -> list[Standing]:
    from launch.sweeps.study import Standing

    standings = []
    for trial in sweep.trials:
        if trial.values:
            history = read_run(trial.folder.path)
            points = history.curves.get(METRIC, ()) if history else ()
            curve = {point.step: point.value for point in points}
            outcome = "" if trial.pruned_at is None else "pruned"
            if history and history.status == "finished":
                outcome = "finished" if is_measured(history) else ""
            standings.append(Standing(trial.number, trial.values, curve, outcome))
    return standings
