"""Locks between processes. The kernel frees them when their holder dies, however it dies.

Some clusters mount file systems that have no locks: Lustre without its `flock` option, NFS without
a lock service. That must not keep a run from starting, so there every lock counts as free, and a
warning names the file once.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segresmamba.errors import warn_once

logger = logging.getLogger(__name__)

# `is_locked` has to take a lock for a moment to find out, so a lock that is held may be free soon.
_PATIENCE_S, _POLL_S = 0.5, 0.02
_UNLOCKED = "%s cannot be locked (%s): keep other processes away from it"


def try_lock(fd: int, path: Path, *, shared: bool = False) -> bool:
    """Lock an open file for this process alone, without waiting for a process that keeps it.

    Args:
        fd: Descriptor of the file. The lock is freed when its last copy is closed.
        path: The file's name, for the warning.
        shared: Whether other processes may hold the lock as well, if they too ask for a shared one.

    Returns:
        False if another process holds the lock. True if this one has it now, or if the file system
        has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
            continue
        except OSError as error:
            warn_once(logger, _UNLOCKED, path, error.strerror)
        return True


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file; False if there is no file, or no locks."""
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
    """Hold the lock of a file, which is created if need be. Waits as long as its holder lives.

    Raises:
        OSError: If the file cannot be created.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)  # less the umask
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            warn_once(logger, _UNLOCKED, path, error.strerror)
        yield
    finally:
        os.close(fd)
