"""Locks between processes. The kernel frees them when their holder dies, however it dies."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)
# Somebody may just be looking whether a lock is held, see `is_locked`.
_PATIENCE_S, _POLL_S = 0.5, 0.02


def try_lock(fd: int, path: Path) -> bool:
    """Lock an open file for this process alone, without waiting for one that keeps it.

    Returns:
        False if another holds it. True if it is ours, or if the file system has no locks: some
        clusters mount Lustre without them, and that must not keep a run from starting.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
            continue
        except OSError as error:
            _warn_unlocked(path, error)
        return True


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of this file; not if there is none, or no locks."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, waiting for it as long as its holder lives."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            _warn_unlocked(path, error)
        yield
    finally:
        os.close(fd)


def _warn_unlocked(path: Path, error: OSError) -> None:
    logger.warning("%s cannot be locked (%s): keep other processes away from it", path, error)
