"""The uploader: a process of its own that follows a run's journal and keeps MLflow up to date.

It is not a thread: importing MLflow and talking to a database takes seconds of Python, which would
share the interpreter lock with training, and hundreds of megabytes, which would count as its
memory. The two processes share only the run folder and a pipe. When the pipe closes, training has
ended or died; the uploader then sends what is left and ends.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from segresmamba.tracking.logs import Style
from segresmamba.tracking.mlflow.sink import MlflowSink
from segresmamba.tracking.protocol import TrackingError

logger = logging.getLogger(__name__)

POLL_S = 1.0
LONGEST_DELAY_S = 60.0
ATTEMPTS_AT_END = 3


class Uploader:
    """Starts and ends the uploader of a run folder.

    Args:
        folder: The run folder.
        logs: Style of its log, see `logs.log_as`.

    Raises:
        OSError: If no process can be started.
    """

    def __init__(self, folder: Path, logs: Style) -> None:
        # It has to outlive training: a session of its own does not get the terminal's Ctrl-C.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "segresmamba.tracking", str(folder), logs],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def close(self, wait_s: float) -> None:
        """Let it send the rest for at most `wait_s`, then kill it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


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
    failures, ended, attempts_left, delay_s = 0, False, ATTEMPTS_AT_END, POLL_S
    while attempts_left:
        if ended:
            time.sleep(delay_s)
        elif training_ended(delay_s):
            ended, delay_s = True, POLL_S
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
    return False
