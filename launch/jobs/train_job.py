"""The job: what a rank runs, on this machine and on Slurm, the first time and after a requeue.

All ranks have to save a preempted run together, because a DeepSpeed checkpoint is a collective.
Submitit would checkpoint in the signal handler of whichever process the signal reaches. So the
handler here only asks the engine to stop. The ranks agree at a step boundary, save, and come back
from `train`. Only then is the job queued again, see `launch.jobs.succession`.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import multiprocessing.util
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any, Protocol

from launch.failures import Failure, failure_path, write_failure
from launch.jobs import rank
from launch.jobs.start import RANK_MODULES
from segresmamba.config import Config
from segresmamba.config.own_presets import say_preset
from segresmamba.errors import OUR_CODE
from segresmamba.secrets import recall, reveal

logger = logging.getLogger(__name__)

STOP_SIGNALS = (rank.REQUEUE_SIGNAL, signal.SIGTERM)


@dataclass(frozen=True)
class RunResult:
    """How an engine's `train` has ended."""

    status: str
    """finished, preempted or pruned."""
    step: int
    """The last step that was trained."""
    folder: str
    """The run folder."""
    ui_hint: str
    """Where to look at the run: a command or a URL."""

    @classmethod
    def from_engine(cls, result: dict[str, Any]) -> RunResult:
        """The result from the dict that an engine's `train` returns."""
        return cls(result["status"], result["step"], result["folder"], result["ui_hint"])


class RankJob(Protocol):
    """What a backend starts. It is pickled, and every rank calls it."""

    def resolved_config(self) -> Config:
        """The run."""

    def __call__(self) -> RunResult:
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

    def resolved_config(self) -> Config:
        """The run."""
        return self.config

    def __call__(self) -> RunResult:
        """Train as one rank; return how it ended, on this rank.

        Raises:
            SystemExit: See `run`.
        """
        return self.run(lambda engine: RunResult.from_engine(engine.train(self.config)))

    def run(self, train: Callable[[Any], RunResult]) -> RunResult:
        """Call `train` with the engine as one rank of the job.

        Raises:
            SystemExit: With code 2 after a mistake of the user or 75 after a passing fault, whose
                screen is then in the log; without an error when the job goes back to the queue.
        """
        quick_exit = QuickExit()
        place = rank.place()
        logs, number = place.paths.folder, place.global_rank
        # A start before a requeue may have left it.
        failure_path(logs, place.job_id, number).unlink(missing_ok=True)
        recall(logs)  # a cluster may start jobs without the environment of their submission
        variables = self.config.cluster.variables
        os.environ.update({name: reveal(value) for name, value in variables.items()})
        os.environ.update(rank.rank_environment(place))
        # Submitit puts standard error into the rank's log; rank 0 speaks for all.
        line = f"%(asctime)s rank {number} %(levelname)s %(name)s: %(message)s"
        logging.basicConfig(format=line, datefmt="%H:%M:%S", level=logging.WARNING)
        logging.getLogger("segresmamba").setLevel(logging.WARNING if number else logging.INFO)
        logging.getLogger("submitit").handlers.clear()  # or it prints everything three times
        # A job that an earlier version submitted has no record of its presets.
        for group, path in vars(self.config.run).get("own_presets", {}).items():
            say_preset(group, path)
        _shield_resource_tracker()
        try:
            with StopSignals() as signals:
                engine = importlib.import_module(self.engine)
                signals.pass_on(engine.request_stop)
                result = train(engine)
        except Exception as error:
            failure = Failure.from_error(error, number)
            try:
                write_failure(failure, logs, place.job_id)
            except OSError as problem:  # a full disk, say: the exit code still says the kind
                logger.warning("the failure is not on the disk: %s", problem)
            quick_exit.code = failure.exit_code
            if failure.exit_code == OUR_CODE:
                raise
            sys.stderr.write(failure.text + "\n")
            sys.exit(failure.exit_code)
        if result.status == "preempted" and rank.goes_back_to_queue(signals.received):
            rank.requeue(f"saved at step {result.step}")  # with an exit code of its own
        quick_exit.code = 0
        return result

    def checkpoint(self) -> object:
        """Submitit asks for this after a requeue: the same job again, which resumes by itself."""
        return rank.resubmission(self)


def _shield_resource_tracker() -> None:
    """Start multiprocessing's resource tracker so that it outlives preemption.

    Slurm signals every process of a job. The tracker, which the first import that makes a semaphore
    would start, ignores SIGTERM but dies of SIGUSR2, and the one that follows complains about all
    that it inherits.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [rank.REQUEUE_SIGNAL])
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class StopSignals:
    """Turns preemption, time limit and SIGTERM into one call, instead of submitit's handlers.

    A signal that comes while torch is imported, before there is an engine to call, is kept.
    """

    def __init__(self) -> None:
        self.received: set[int] = set()
        self._request_stop: Callable[[], None] | None = None

    def __enter__(self) -> StopSignals:
        def handle(signum: int, frame: FrameType | None) -> None:
            self.received.add(signum)
            if self._request_stop:
                self._request_stop()

        self._previous = {signum: signal.signal(signum, handle) for signum in STOP_SIGNALS}
        return self

    def pass_on(self, request_stop: Callable[[], None]) -> None:
        """From now on a signal calls `request_stop`, and so does one that came before."""
        self._request_stop = request_stop
        if self.received:
            request_stop()

    def __exit__(self, *_: object) -> None:
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)


class QuickExit:
    """Ends a rank's process right after its exit handlers, if `code` is set by then.

    While Python's interpreter shuts down, threads of libraries may still run. One that then wants
    the interpreter's lock aborts the process: "terminate called without an active exception". A
    rank that had finished would count as failed, and its job would be queued again. A rank that has
    failed saves a second, as Python would free one by one what the libraries have made.

    Create it before the libraries are imported: exit handlers run in reverse order, so those of the
    libraries come first.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        """Set the process's exit code when nothing is left to do."""

        def end() -> None:
            if self.code is not None:
                # Its own exit handler would come after this one. It frees the named semaphores of
                # the queues to reader processes, of which a tracker would warn as leaked.
                multiprocessing.util._exit_function()  # type: ignore[attr-defined]
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(self.code)

        # A process that belongs to somebody else (debug, tests) keeps its own exit code.
        main = getattr(sys.modules["__main__"], "__spec__", None)
        if main is not None and main.name in RANK_MODULES:
            atexit.register(end)
