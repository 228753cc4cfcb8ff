"""Writes that wait: while the disk is full, or the file system is away for a while."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import TypeVar

from segresmamba.errors import is_passing

T = TypeVar("T")
logger = logging.getLogger(__name__)

_PAUSE_S = 2.0
_patience_s = 0.0


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Within this block, `patiently` waits so long, in all threads of the process."""
    global _patience_s  # noqa: PLW0603 - writers are many, and deep
    before, _patience_s = _patience_s, seconds
    try:
        yield
    finally:
        _patience_s = before


def patiently(write: Callable[[], T], path: Path, needed_bytes: int) -> T:
    """Write, and do it again while it fails for a reason that may pass.

    Args:
        write: Writes everything anew each time, to the disk.
        path: What is written, for the messages.
        needed_bytes: About how much that is.

    Raises:
        OSError: If it fails for another reason, or patience is over. The error then names the file,
            and says in a note how much space is needed and free.
    """
    end_s, is_waiting = monotonic() + _patience_s, False
    while True:
        try:
            result = write()
        except OSError as error:
            if not is_passing(error):
                raise
            facts = _facts(error, path, needed_bytes)
            if monotonic() >= end_s:
                error.filename = error.filename or str(path)
                error.add_note(facts)
                raise
            if not is_waiting:
                logger.warning(
                    "%s cannot be written: %s; trying again for up to %g s (data.patience_s)",
                    *(path, facts, _patience_s),
                )
            is_waiting = True
            sleep(_PAUSE_S)
        else:
            if is_waiting:
                logger.warning("%s could be written in the end", path)
            return result


def _facts(error: OSError, path: Path, needed_bytes: int) -> str:
    reason = error.strerror or type(error).__name__
    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
        return reason
    folder = next((parent for parent in path.parents if parent.exists()), path.parent)
    free_bytes = shutil.disk_usage(folder).free
    return f"{reason}: {folder} needs {needed_bytes:,} bytes, and {free_bytes:,} are free"
