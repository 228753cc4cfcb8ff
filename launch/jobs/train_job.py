"""The job: what a rank runs, on this machine and on Slurm, the first time and after a requeue.

A preempted run has to be saved by all its ranks together, because a DeepSpeed checkpoint is a
collective; submitit would checkpoint in the signal handler of whichever process the signal reaches.
Here the handler only asks the engine to stop. The ranks agree at a step boundary, save, and come
back from `train`; only then does submitit's own handler run, and requeues.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import FrameType, TracebackType
from typing import Any, Protocol

from launch.failures import USER_ERROR_CODE, Failure, failure_path, write_failure
from launch.jobs import submission
from launch.quick_exit import QuickExit
from segresmamba.config import Config

STOP_SIGNALS = (submission.REQUEUE_SIGNAL, signal.SIGTERM)


class Work(Protocol):
    """What the launcher starts: picklable, called by every rank."""

    @property
    def config(self) -> Config:
        """The run."""

    def __call__(self) -> dict[str, Any]:
        """Train as one rank."""

    def checkpoint(self) -> object:
        """What is submitted again after a requeue."""


@dataclass(frozen=True)
class TrainJob:
    """A training run as one picklable, stateless callable: all state is in the run folder."""

    config: Config
    """The run."""
    engine: str = "segresmamba.engine"
    """Module with `train(config)` and `request_stop()`: a name, so that submitting a job does not
    import torch."""

    def __call__(self) -> dict[str, Any]:
        """Train as one rank; return what the engine's `train` returns, on this rank.

        Raises:
            SystemExit: See `run`.
        """
        return self.run(lambda engine: engine.train(self.config))

    def run(self, train: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Call `train` with the engine as one rank of the job.

        Raises:
            SystemExit: With code 2 after a mistake of the user, whose screen is then in the log;
                without an error when the job goes back to the queue.
        """
        leaving = QuickExit()
        place = submission.place()
        logs, rank = place.paths.folder, place.global_rank
        failure_path(logs, place.job_id, rank).unlink(missing_ok=True)  # before a requeue
        os.environ.update(self.config.cluster.variables)
        os.environ.update(submission.rank_environment(place))
        _log_to_stderr(rank)
        _shield_resource_tracker()
        try:
            with StopSignals() as signals:
                engine = importlib.import_module(self.engine)
                signals.pass_on(engine.request_stop)
                result = train(engine)
        except Exception as error:
            failure = Failure.from_error(error, rank)
            write_failure(failure, logs, place.job_id)
            if failure.exit_code == USER_ERROR_CODE:
                sys.stderr.write(failure.text + "\n")
                sys.exit(USER_ERROR_CODE)
            raise
        if result["status"] == "preempted" and submission.goes_back_to_queue(signals.received):
            submission.requeue()  # which leaves with an exit code of its own
        leaving.is_well = True
        return result

    def checkpoint(self) -> object:
        """Submitit asks for this after a requeue: the same job again, which resumes by itself."""
        return submission.resubmission(self)


def _log_to_stderr(rank: int) -> None:
    """Submitit puts standard error into the rank's log; rank 0 speaks for all."""
    line = f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(format=line, datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("segresmamba").setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logging.getLogger("submitit").handlers.clear()  # or it says everything three times


def _shield_resource_tracker() -> None:
    """Start multiprocessing's resource tracker so that it outlives preemption.

    Slurm signals every process of a job. The tracker, which the first import that makes a semaphore
    would start, ignores SIGTERM but dies of SIGUSR2, and its heir complains about all it inherits.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [submission.REQUEUE_SIGNAL])
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class StopSignals:
    """Turns preemption, time limit and SIGTERM into one call, instead of submitit's handlers.

    A signal that comes before there is somebody to call, while torch is imported, is kept.
    """

    def __init__(self) -> None:
        self.received: set[int] = set()
        self._request_stop: Callable[[], None] | None = None

    def __enter__(self) -> StopSignals:
        self._previous = {signum: signal.signal(signum, self._handle) for signum in STOP_SIGNALS}
        return self

    def pass_on(self, request_stop: Callable[[], None]) -> None:
        """From now on a signal calls `request_stop`, and so does one that came before."""
        self._request_stop = request_stop
        if self.received:
            request_stop()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.received.add(signum)
        if self._request_stop:
            self._request_stop()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)
