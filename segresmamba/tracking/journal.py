"""The journal of a run: journal.jsonl, from which everything else can be rebuilt.

One JSON object a line, only ever appended to:

    {"kind": "run", "time_ms": 1763880000000, "schema": 1, "id": "4f0c...", "name": "my-run"}
    {"kind": "params", "time_ms": ..., "values": {"train": {"lr": 0.0001}}}
    {"kind": "tags", "time_ms": ..., "values": {"scan_backend": "cpu"}}
    {"kind": "metrics", "time_ms": ..., "step": 10, "epoch": 0.5, "values": {"train/loss": 0.7}}
    {"kind": "artifact", "time_ms": ..., "path": "overlays", "folder": ""}
    {"kind": "dataset", "time_ms": ..., "name": "spleen", "digest": "9c1e...", "source": "x.zarr"}
    {"kind": "model", "time_ms": ..., "path": "best", "step": 900, "loader": "package.module"}
    {"kind": "status", "time_ms": ..., "status": "running", "host": "n1", "pid": 4711}
    {"kind": "attempt", "time_ms": ..., "step": 100}

JSON has no numbers that are not finite: "nan", "inf" and "-inf" are strings, which `float` reads
back. A path that lies below the run folder is relative to it.

Each append is one system call, so a crash can only cut the last line. With its number and its
checksum, which are not shown above, `journal_lines` finds lines that were damaged, moved, repeated
or removed. The next process that writes moves what is damaged to journal.damaged.jsonl, and leaves
blanks in its place. `attempts` explains the kind "attempt".
"""

from __future__ import annotations

import errno
import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from segresmamba.errors import warn_once
from segresmamba.storage.atomic import atomic_path, sync_entries
from segresmamba.storage.locks import try_lock
from segresmamba.tracking.journal_lines import (
    SCHEMA,
    JournalReader,
    JournalRecord,
    not_a_journal,
    split_line,
    write_line,
)
from segresmamba.tracking.protocol import JournalHeldError, TrackingError

__all__ = [
    "SCHEMA",
    "Journal",
    "JournalRecord",
    "read_header",
    "read_journal",
    "read_records",
    "separate_copy",
    "warn_if_cut",
]

logger = logging.getLogger(__name__)

FAULTS_TAG = "damaged_journal"
"""Tag of a run with what was wrong with its journal."""


class Journal:
    """A journal that this process writes, and no other.

    Args:
        path: The file. A journal that exists is continued after its last complete record.
        name: Name of the run, for the first record.
        known_id: Id to take if the file has none, or has lost it.

    Attributes:
        faults: What was wrong with the lines that the file had; empty if `FAULTS_TAG` says it.

    Raises:
        TrackingError: If the file cannot be written, another process is writing it, or it is not a
            journal that this version understands.
    """

    def __init__(self, path: Path, *, name: str, known_id: str = "") -> None:
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o666)  # less the umask
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            if not try_lock(self._fd, path):
                raise _held_error(path)
            self._end = self._opened = self._end_of_last_line()
            self._has_doubts, self._params = False, set[str]()
            self._number, header, told = 0, None, ""
            reader = JournalReader(path)
            for record in reader:
                self._number = max(self._number, record.number or 0) + 1
                header = record if record.kind == "run" else header
                if record.kind == "tags":
                    told = record.body["values"].get(FAULTS_TAG, told)
            faults = str(reader.faults)
            self.faults = "" if told.endswith(faults) else faults
            self._set_aside(reader.damaged)
            if header is None:
                self.append("run", schema=SCHEMA, id=known_id or uuid.uuid4().hex, name=name)
                self.flush()
                sync_entries(path.parent)
        except BaseException:
            self.close()
            raise

    def append(self, kind: str, **body: Any) -> None:
        """Add a record.

        One write into the kernel's page cache, which survives the death of this process. What has
        to survive a power loss is flushed.

        Raises:
            OSError: If it could not be written; the journal then ends with the record before.
            JournalHeldError: If the run has begun again in another process.
        """
        start = self._end_after_others()
        # MLflow's time stamps are milliseconds too, so they go there unchanged.
        line = write_line(kind, time.time_ns() // 1_000_000, self._number, body)
        try:
            if os.write(self._fd, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        except OSError:
            # The next record would continue the line of half a record.
            with suppress(OSError):
                os.ftruncate(self._fd, start)
            raise
        self._end = start + len(line)
        if kind == "params":
            self._params |= {record.check for record in split_line(line, 0)[0]}
        self._number += 1

    def flush(self) -> None:
        """Write all records to disk."""
        os.fsync(self._fd)

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self._end

    def close(self) -> None:
        """Close the file and free its lock."""
        with suppress(OSError):
            os.close(self._fd)
        self._fd = -1

    def _end_after_others(self) -> int:
        """The size of the file, with what processes of other machines have added.

        Some file systems keep locks to each machine: BeeGFS, Lustre with `localflock`. Of two
        processes that train one run there, the one that began last goes on, as after the failure of
        a node.
        """
        size = os.fstat(self._fd).st_size
        if size <= self._end and not self._has_doubts:
            return self._end
        # This machine may have kept pages of the file from before the other one wrote.
        with suppress(AttributeError):  # macOS has no such call
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        reader = JournalReader(self._path, self._opened)
        added = list(reader)
        begun = {record.check for record in added if record.kind == "params"}
        if begun - self._params:  # an evaluation has none
            raise _held_error(self._path)
        # This machine may have the new size of the file before its new content.
        seen = added[-1].end if added else self._opened
        self._has_doubts = bool(reader.damaged) or seen < size
        self._number = max([self._number, *((record.number or 0) + 1 for record in added)])
        warn_once(logger, "another process has added to %s, whose lock it did not see", self._path)
        return max(size, self._end)

    def _end_of_last_line(self) -> int:
        """Cut what a power loss has left of a last line, and return the size of the file."""
        content = self._path.read_bytes()
        end = content.rfind(b"\n") + 1
        if split_line(content[end:], end)[0]:  # only the end of the line is lost
            return len(content) + os.write(self._fd, b"\n")
        warn_if_cut(self._path, end)
        if len(content) > end:
            os.ftruncate(self._fd, end)
        return end

    def _set_aside(self, damaged: list[tuple[int, int]]) -> None:
        """Move damaged places into a file beside the journal.

        Blanks take their place: MLflow's state has offsets of what lies behind them.
        """
        if not damaged:
            return
        aside = self._path.with_name(f"{self._path.stem}.damaged{self._path.suffix}")
        try:
            with self._path.open("r+b") as file, aside.open("ab") as copy:
                for start, end in damaged:
                    file.seek(start)
                    copy.write(file.read(end - start) + b"\n")
                copy.flush()
                os.fsync(copy.fileno())
                for start, end in damaged:
                    file.seek(start)
                    file.write(b" " * (end - start))
        except OSError as error:
            logger.error("what is damaged in %s could not be set aside: %s", self._path, error)
        else:
            logger.error("what is damaged in %s is now in %s", self._path, aside)


def read_records(path: Path, start: int = 0) -> Iterator[JournalRecord]:
    """The complete and sound records of a journal, see `JournalReader`.

    Args:
        path: The journal.
        start: Offset in bytes to begin at: the `end` of a record, or 0.

    Raises:
        TrackingError: If the file is missing, not a journal, or of a newer version.
    """
    return iter(JournalReader(path, start))


def read_journal(path: Path) -> list[JournalRecord]:
    """All complete records, with a warning if the last line is cut.

    Raises:
        TrackingError: As `read_records`.
    """
    records = list(read_records(path))
    warn_if_cut(path, records[-1].end if records else 0)
    return records


def read_header(path: Path) -> JournalRecord:
    """The record that names the journal.

    If it was damaged, the next process that writes the journal adds another. Until then, this
    gives one with an empty id.

    Raises:
        TrackingError: As `read_records`, and if the journal is empty.
    """
    first = None
    for record in read_records(path):
        if record.kind == "run":
            return record
        first = first or record
    if first is None:
        raise not_a_journal(path, "an empty file")
    body = {"schema": SCHEMA, "id": "", "name": path.parent.name}
    return JournalRecord("run", first.time_ms, body, end=0)


def separate_copy(path: Path) -> str | None:
    """Give the journal of a run folder that was copied an id of its own.

    The folder has another name than its run, and beside it is the folder of that name with the
    same journal. Both would otherwise be one run in MLflow and in reports, with values of either.
    A folder that was renamed keeps its id.

    Args:
        path: The journal, which need not exist.

    Returns:
        The new id; None if the folder is no copy.

    Raises:
        TrackingError: As `read_header`, and if the journal cannot be written, or another process is
            writing it.
    """
    folder = path.parent.resolve()
    if not path.exists() or not path.stat().st_size:
        return None
    header = read_header(path)
    original = folder.parent / header.body["name"] / path.name
    if not header.body["id"] or original.parent == folder or not original.is_file():
        return None
    if read_header(original).body["id"] != header.body["id"]:
        return None
    body = header.body | {"id": uuid.uuid4().hex, "name": folder.name}
    try:
        with path.open("r+b") as file:
            if not try_lock(file.fileno(), path):
                raise _held_error(path)
            content = file.read()
            start = content.rfind(b"\n", 0, header.end - 1) + 1
            line = write_line("run", header.time_ms, header.number or 0, body)
            with atomic_path(path) as temporary:
                temporary.write_bytes(content[:start] + line + content[header.end :])
    except OSError as error:
        raise _cannot_write(path, error) from error
    logger.info("%s is a copy of %s: it goes on as a run of its own", folder, original.parent)
    return str(body["id"])


def warn_if_cut(path: Path, end: int) -> None:
    """Warn if a journal does not end with its last complete record, whose end is `end`."""
    if cut := path.stat().st_size - end:
        logger.warning(
            "%s ends in the middle of a record (power loss?): the last %d bytes are left out",
            path,
            cut,
        )


def _cannot_write(path: Path, error: OSError) -> TrackingError:
    return TrackingError(
        "the journal cannot be written",
        where=path,
        got=error.strerror,
        remedy="set run.root to a folder that you can write to; to go on with a run, or to "
        "evaluate it, copy its folder there first",
    )


def _held_error(path: Path) -> JournalHeldError:
    # Each process that opens a journal records its host and process id first, see `RunTracker`.
    holders = [record.body for record in read_records(path) if "pid" in record.body]
    holder = f"process {holders[-1]['pid']} on {holders[-1].get('host')}" if holders else "unknown"
    return JournalHeldError(
        "another process is writing this journal",
        where=path,
        got=holder,
        remedy="wait for that run to end, stop it, or choose another run.name",
    )
