"""Files and folders that are complete or absent.

Everything is written under a temporary name in the target's own folder, flushed to disk, and then
renamed. A process that is killed at any moment leaves the previous content in place. Content is
complete after a power cut, too.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from segresmamba.storage.patience import patiently

_PREFIX = ".part-"
_OWNED = re.compile(rf"{re.escape(_PREFIX)}([^-]+)-(\d+)-(.+)", re.DOTALL)
"""Host, process and final name of a temporary name."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a block a temporary file to write; the file replaces `path` when the block ends.

    Two processes that write the same file do not disturb each other: the last one wins.

    Args:
        path: The file. Its folder has to exist.

    Yields:
        The temporary file, which does not exist yet.

    Raises:
        OSError: If it cannot be written; `path` is then as it was.
    """
    temporary = temporary_path(path)
    try:
        yield temporary
        # Without this order a power cut could leave the name with an empty file behind it.
        sync(temporary)
        temporary.replace(path)
        sync_entries(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """The name under which this process writes what is to become `path`.

    It ends as `path` does, for libraries that choose a format by the suffix. It names host and
    process, see `remove_abandoned`.
    """
    return path.with_name(f"{_PREFIX}{_host()}-{os.getpid()}-{path.name}")


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` by this text in UTF-8, patiently.

    Raises:
        OSError: If it cannot be written; `path` is then as it was.
    """

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    patiently(write, path, len(text))


def complete_folder(temporary: Path, path: Path) -> None:
    """Rename a folder that was written under a temporary name, once it is on disk.

    Args:
        temporary: The folder. It lies on the same file system as `path`.
        path: Its final name. Nothing has this name yet.

    Raises:
        OSError: If it cannot be written to disk or renamed.
    """
    sync_tree(temporary)
    temporary.rename(path)
    sync_entries(path.parent)


def sync_tree(folder: Path) -> None:
    """Write all files below a folder, and the folders themselves, to disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(parent, name))
        sync_entries(Path(parent))


def sync_entries(folder: Path) -> None:
    """Write the names in a folder to disk, where its file system can do that."""
    try:
        sync(folder)
    except OSError as error:
        # Some FUSE and SMB mounts refuse to sync a folder. The files themselves are on disk.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise


def sync(path: Path) -> None:
    """Write one file, or the entries of one folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Delete what killed processes left under temporary names.

    Args:
        folder: Where to look.
        name: Only what was to become this file; no other process may be writing it. Without a name
            everything is deleted, so no other process may be writing in the folder.
    """
    for path in folder.glob(f"{_PREFIX}*-{glob.escape(name)}" if name else f"{_PREFIX}*"):
        remove(path)


def remove_abandoned(folder: Path, names: Collection[str]) -> None:
    """Delete what killed processes left of these files, in a folder that others may be writing in.

    What another living process of this machine writes stays. No process of another machine may be
    writing these files, and this process must not have begun to.

    Args:
        folder: Where to look; it need not exist.
        names: The files, or folders, that were to be written.
    """
    for path in folder.glob(f"{_PREFIX}*"):
        owned = _OWNED.fullmatch(path.name)
        if owned is None or owned[3] not in names:
            continue
        if owned[1] != _host() or not _is_another_process(int(owned[2])):
            remove(path)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_another_process(pid: int) -> bool:
    """Whether another process of this machine has this number now."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it belongs to somebody else
        return True
    return pid != os.getpid()


def _host() -> str:
    """This machine, in a form that a temporary name can be taken apart again."""
    return socket.gethostname().replace("-", "_")
