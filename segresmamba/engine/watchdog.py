"""Finds a rank that hangs: a collective that never ends, a file system that no longer answers.

Every rank watches itself, because a rank that hangs cannot be asked, and the others wait for it in
a collective, where nothing reaches them either. So all of them notice within seconds, each writes
the stacks of its threads to its log and to `logs/hang-rank-00000.txt`, and then ends its process as
a passing fault: Slurm queues the job again.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path

from segresmamba.errors import PASSING_CODE

logger = logging.getLogger(__name__)

GRACE_S = 15.0
"""From the first sign to the end: time to write the stacks, for the other ranks as well. It has to
be an end without conditions, because writing may hang, too."""
_LOOK_S = 5.0


class Watchdog:
    """Ends the process if it makes no progress: a context manager within which `beat` is called.

    Args:
        timeout_s: The longest time between two beats; None or 0 watches nothing.
        logs: Folder of the stacks; created.
        rank: This process's rank.
    """

    def __init__(self, timeout_s: float | None, logs: Path, rank: int) -> None:
        self._timeout_s, self._logs, self._rank = timeout_s, logs, rank
        self._silent_s = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self) -> None:
        """Say that the process makes progress."""
        self._silent_s = 0.0

    def __enter__(self) -> Watchdog:
        if self._timeout_s:
            self.beat()
            self._ended.clear()
            self._thread = threading.Thread(
                target=self._watch, args=(self._timeout_s,), name="watchdog", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self, timeout_s: float) -> None:
        look_s = min(_LOOK_S, timeout_s / 10)
        while not self._ended.wait(look_s):
            # Counted, not read off a clock: a process that was stopped for a while, or whose
            # computer slept, is not blamed for it.
            self._silent_s += look_s
            if self._silent_s > timeout_s:
                self._end(timeout_s)
                return
            # A library that hangs with the interpreter's lock keeps this thread from looking, so a
            # thread without Python looks at this one.
            with suppress(AttributeError, OSError, ValueError):  # there may be no standard error
                descriptor = sys.__stderr__.fileno()  # type: ignore[union-attr]
                faulthandler.dump_traceback_later(
                    timeout_s + 2 * GRACE_S, exit=True, file=descriptor
                )

    def _end(self, timeout_s: float) -> None:
        threading.Thread(
            target=self._report, args=(timeout_s,), name="watchdog report", daemon=True
        ).start()
        threading.Event().wait(GRACE_S)
        os._exit(PASSING_CODE)

    def _report(self, timeout_s: float) -> None:
        text = f"rank {self._rank} has made no progress for {timeout_s:g} s (train.hang_timeout_s)"
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        frames = "\n".join(
            f"thread {names.get(number, number)}:\n{''.join(traceback.format_stack(frame))}"
            for number, frame in sys._current_frames().items()
        )
        stacks = f"{text}; the stacks of its threads:\n{frames}"
        logger.critical("%s", stacks)
        with suppress(OSError):  # the log has them
            self._logs.mkdir(parents=True, exist_ok=True)
            path = self._logs / f"hang-rank-{self._rank:05d}.txt"
            path.write_text(stacks, encoding="utf-8")
