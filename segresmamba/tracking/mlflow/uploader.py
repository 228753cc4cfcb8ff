"""The uploader: a process of its own that follows a run's journal and keeps MLflow up to date.

It is not a thread: importing MLflow and talking to a database takes seconds of Python, which would
share the interpreter lock with training, and hundreds of megabytes, which would count as its
memory. The two processes share only the run folder and a pipe. When the pipe closes, training has
ended or died; the uploader then sends what is left and ends.

If training closes the pipe without a word, it has failed. The launcher then adds to the journal
what it knows about the failure. The uploader waits a few seconds for that, because another process
would have to import MLflow again. It holds the lock of a file while it lives, by which the launcher
sees it.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from segresmamba.storage.locks import is_locked, try_lock
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking.logs import Style
from segresmamba.tracking.mlflow.sink import MlflowSink
from segresmamba.tracking.mlflow.state import UploadState
from segresmamba.tracking.protocol import TrackingError

logger = logging.getLogger(__name__)

POLL_S = 1.0
START_S = 4.0
"""How long the first poll lasts. The ranks are starting, and MLflow's import would slow them."""
LONGEST_DELAY_S = 60.0
ATTEMPTS_AT_END = 3
LAUNCHER_S = 5.0
"""How long the uploader of a failed run waits for what the launcher has to add."""
NOTE_S = 5.0
"""After so long a user should know what the command waits for."""
LOCK_NAME = ".uploader.lock"
_LAST_WORD = b"end"
_SHORT_POLL_S = 0.05


class Uploader:
    """Starts and ends the uploader of a run folder.

    Args:
        folder: The run folder.
        logs: Style of its log, see `logs.log_as`.

    Raises:
        OSError: If no process can be started.
    """

    def __init__(self, folder: Path, logs: Style) -> None:
        # The process inherits the lock, which so is held from here until its end.
        path = folder / LOCK_NAME
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)  # less the umask
        try:
            # It fails if the uploader of an earlier start still lives, which does no harm.
            try_lock(lock, path)
            # It has to outlive training: a session of its own does not get the terminal's Ctrl-C.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "segresmamba.tracking", str(folder), logs],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[lock],
            )
        finally:
            os.close(lock)
        self._folder = folder
        assert self._process.stdin is not None
        self._pipe = self._process.stdin

    @property
    def was_killed(self) -> bool:
        """Whether a signal has ended it, as the kernel does when memory runs out."""
        code = self._process.poll()
        return code is not None and code < 0

    def close(self, wait_s: float) -> None:
        """Let it send the rest for at most `wait_s`, then kill it."""
        with suppress(BrokenPipeError):  # it has given up, and said why
            self._pipe.write(_LAST_WORD)
            self._pipe.close()
        try:
            self._process.wait(min(NOTE_S, wait_s))
        except subprocess.TimeoutExpired:
            if wait_s > NOTE_S:
                logger.info("waiting for MLflow, at most %.0f s; the run itself has ended", wait_s)
            try:
                self._process.wait(max(0.0, wait_s - NOTE_S))
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def leave(self, wait_s: float) -> None:
        """Let it send the rest for at most `wait_s`, and then wait for the launcher by itself."""
        self._pipe.close()
        deadline_s = time.monotonic() + wait_s
        while self._process.poll() is None and not has_everything(self._folder):
            if time.monotonic() > deadline_s:
                self._process.kill()
                self._process.wait()
            time.sleep(_SHORT_POLL_S)
        self._process.returncode = 0  # or Popen would warn that the process still runs


def has_everything(folder: Path) -> bool:
    """Whether MLflow has all records of a run's journal, according to its mlflow.json."""
    try:
        sent_bytes = UploadState.load(folder).sent_bytes
        return sent_bytes == RunFolder(folder).journal.stat().st_size
    except (TrackingError, OSError):  # somebody may have deleted the folder
        return False


def wait_for_uploader(folder: Path, wait_s: float) -> bool:
    """Wait until the uploader that a failed run has left behind has sent everything.

    Args:
        folder: The run folder.
        wait_s: For how long at most.

    Returns:
        Whether MLflow has everything. If not, there is no uploader, or it has not managed to.
    """
    deadline_s = time.monotonic() + wait_s
    while not (done := has_everything(folder)) and is_locked(folder / LOCK_NAME):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_SHORT_POLL_S)
    return done


def run(folder: Path, pipe: IO[bytes]) -> bool:
    """What the process does: follow the journal until the pipe closes, and finish.

    Args:
        folder: The run folder.
        pipe: The end of the pipe to read from.

    Returns:
        Whether MLflow has everything.
    """

    def training_ended(wait_s: float) -> bool:
        return bool(select.select([pipe], [], [], wait_s)[0])

    done = follow(folder, training_ended)
    if done and not pipe.read() and _launcher_has_added(folder):
        done = follow(folder, lambda _: True)
    return done


def _launcher_has_added(folder: Path) -> bool:
    """Wait up to `LAUNCHER_S` until somebody has added records, and has closed the journal.

    If it is not closed by then, the run has begun again, with an uploader of its own.
    """
    journal = RunFolder(folder).journal
    deadline_s = time.monotonic() + LAUNCHER_S
    try:
        sent_bytes = UploadState.load(folder).sent_bytes
        while journal.stat().st_size == sent_bytes or is_locked(journal):
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_SHORT_POLL_S)
    except (FileNotFoundError, TrackingError):  # somebody has deleted the run
        return False
    return True


def follow(folder: Path, training_ended: Callable[[float], bool]) -> bool:
    """Send the journal's records as they come, until training has ended.

    While MLflow cannot be reached, the delay between two attempts doubles up to `LONGEST_DELAY_S`.
    After the end of training there are `ATTEMPTS_AT_END` more.

    Args:
        folder: The run folder.
        training_ended: Waits at most the given seconds and returns whether training has ended.

    Returns:
        Whether MLflow has everything.
    """
    sink = MlflowSink(folder)
    failures, attempts_left, delay_s = 0, ATTEMPTS_AT_END, POLL_S
    ended = training_ended(START_S)
    while True:
        if ended:
            attempts_left -= 1
        try:
            sink.push(last=ended)
        except TrackingError as error:
            logger.error("nothing more is sent to MLflow\n%s", error.screen())
            return False
        except Exception as error:
            failures += 1
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)
            if failures == 1:
                logger.warning("MLflow cannot be reached, the uploader goes on trying: %s", error)
        else:
            if failures:
                logger.warning("MLflow can be reached again and has everything")
            if ended:
                return True
            failures, delay_s = 0, POLL_S
        if not attempts_left:
            return False
        if ended:
            time.sleep(delay_s)
        elif training_ended(delay_s):
            ended, delay_s = True, POLL_S
