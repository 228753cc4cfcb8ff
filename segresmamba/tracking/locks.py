"""Locks between processes. The kernel frees them when their holder dies, however it dies."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


def try_lock(fd: int, path: Path) -> bool:
    """Lock an open file for this process alone, without waiting.

    Returns:
        False if another holds it. True if it is ours, or if the file system has no locks: some
        clusters mount Lustre without them, and that must not keep a run from starting.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _warn_unlocked(path, error)
    return True


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
