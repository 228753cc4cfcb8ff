"""Waiting for a job on this machine: its log on the terminal, Ctrl-C, and how it ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

POLL_S = 0.2


def wait(controller: subprocess.Popen[bytes], log: Path) -> int:
    """Show `log` while it grows until the job's controller ends; return the controller's exit code.

    The first Ctrl-C or SIGTERM asks the ranks to save a checkpoint and stop, the second ends them.
    """
    with _stopping(controller):
        position = 0
        while True:
            ended = controller.poll() is not None  # asked before reading, so that nothing is missed
            position = show(log, position)
            if ended:
                return controller.returncode
            time.sleep(POLL_S)


def show(log: Path, position: int) -> int:
    """Copy what was added to the log since `position` to standard error; return the new end."""
    if not log.exists():
        return position
    with log.open("rb") as stream:
        stream.seek(position)
        added = stream.read()
    sys.stderr.buffer.write(added)
    sys.stderr.flush()
    return position + len(added)


@contextmanager
def _stopping(controller: subprocess.Popen[bytes]) -> Iterator[None]:
    stopping = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopping
        again, stopping = stopping, True
        controller.send_signal(signal.SIGINT if again else signal.SIGTERM)
        if not again:
            sys.stderr.write("\nsaving a checkpoint to stop; Ctrl-C again ends the job at once\n")

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {signum: signal.signal(signum, stop) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
