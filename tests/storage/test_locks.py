from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from segresmamba.storage.locks import is_locked, locked, try_lock
from tests.processes import started

HOLD = """
import pathlib, sys
from segresmamba.storage.locks import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.lock"


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until its input closes or it is killed."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def take(path: Path) -> bool:
    """Take the lock and free it again."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        return try_lock(fd, path)
    finally:
        os.close(fd)


def test_a_lock_is_held_until_its_holder_dies(path: Path, holder: subprocess.Popen[str]) -> None:
    assert is_locked(path)
    assert not take(path)
    holder.kill()
    holder.wait()
    assert not is_locked(path)
    assert take(path)


def test_shared_locks_exclude_only_those_who_want_it_alone(path: Path) -> None:
    with path.open("w") as first, path.open() as second, path.open() as alone:
        assert try_lock(first.fileno(), path, shared=True)
        assert try_lock(second.fileno(), path, shared=True)
        assert not try_lock(alone.fileno(), path)


def test_a_lock_is_waited_for(path: Path, holder: subprocess.Popen[str]) -> None:
    taken = threading.Event()

    def wait() -> None:
        with locked(path):
            taken.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not taken.wait(0.2)
    assert holder.stdin is not None
    holder.stdin.close()
    assert taken.wait(10)
    waiting.join()


def test_a_process_does_not_get_a_lock_twice(path: Path) -> None:
    with locked(path):
        assert not take(path)
    assert take(path)


def test_a_short_look_at_a_lock_keeps_nobody_from_taking_it(path: Path) -> None:
    path.touch()
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # what `is_locked` does, for a longer moment
        look = threading.Timer(0.1, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        look.start()
        assert take(path)
        look.join()


def test_a_file_that_does_not_exist_is_not_locked(path: Path) -> None:
    assert not is_locked(path)
    assert not path.exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_used_with_one_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("segresmamba.storage.locks.fcntl.flock", flock)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert take(path)
            with locked(path):
                pass
    assert not is_locked(path)
    assert len(caplog.messages) == 1
    assert f"{path} cannot be locked ({os.strerror(code)})" in caplog.text
