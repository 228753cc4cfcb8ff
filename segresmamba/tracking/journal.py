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

JSON has no numbers that are not finite: "nan", "inf" and "-inf" are strings, which `float` reads
back. A path that lies below the run folder is relative to it.

Each append is one system call, so a crash can only cut the last line.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segresmamba.storage.atomic import sync_entries
from segresmamba.storage.locks import try_lock
from segresmamba.tracking.protocol import TrackingError, newer_error

logger = logging.getLogger(__name__)

SCHEMA = 1


@dataclass(frozen=True)
class JournalRecord:
    """One line of a journal.

    Attributes:
        kind: run, params, tags, metrics, artifact, dataset, model or status.
        time_ms: When it was written, in milliseconds since 1970.
        body: The fields of this kind.
        end: Offset in bytes of the record after this one.
    """

    kind: str
    time_ms: int
    body: dict[str, Any]
    end: int


class Journal:
    """A journal that this process writes, and no other.

    Args:
        path: The file. A journal that exists is continued after its last complete record.
        name: Name of the run, for the first record.

    Raises:
        TrackingError: If the file cannot be written, another process is writing it, or it is not a
            journal that this version understands.
    """

    def __init__(self, path: Path, *, name: str) -> None:
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o644)
        except OSError as error:
            raise TrackingError(
                "the journal cannot be written",
                where=path,
                got=error.strerror,
                remedy="set run.root to a folder that you can write to",
            ) from error
        try:
            if not try_lock(self._fd, path):
                raise _held_error(path)
            self._end = path.read_bytes().rfind(b"\n") + 1
            warn_if_cut(path, self._end)
            if path.stat().st_size > self._end:  # a power loss may have cut the last line
                os.ftruncate(self._fd, self._end)
            if self._end == 0:
                self.append("run", schema=SCHEMA, id=uuid.uuid4().hex, name=name)
                self.flush()
                sync_entries(path.parent)
            else:
                read_header(path)  # it raises if the file is not a journal
        except BaseException:
            self.close()
            raise

    def append(self, kind: str, **body: Any) -> None:
        """Add a record.

        One write into the kernel's page cache, which survives the death of this process. What has
        to survive a power loss is flushed.

        Raises:
            OSError: If it could not be written; the journal then ends with the record before.
        """
        # MLflow's time stamps are milliseconds too, so they go there unchanged.
        record = {"kind": kind, "time_ms": time.time_ns() // 1_000_000, **body}
        line = json.dumps(_as_json(record), allow_nan=False).encode() + b"\n"
        try:
            if os.write(self._fd, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        except OSError:
            # The next record would continue the line of half a record.
            with suppress(OSError):
                os.ftruncate(self._fd, self._end)
            raise
        self._end += len(line)

    def flush(self) -> None:
        """Write all records to disk."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file and free its lock."""
        with suppress(OSError):
            os.close(self._fd)
        self._fd = -1


def read_records(path: Path, start: int = 0) -> Iterator[JournalRecord]:
    """The complete records of a journal.

    A journal that is being written may end in the middle of a line; that line is not yet a record.

    Args:
        path: The journal.
        start: Offset in bytes to begin at: the `end` of a record, or 0.

    Raises:
        TrackingError: If the file is missing, damaged, not a journal, or of a newer version.
    """
    try:
        lines = path.open("rb")
    except OSError as error:
        raise TrackingError(
            "there is no journal to read",
            where=path,
            got=error.strerror,
            remedy=f"name the folder of a run, which holds {path.name}",
        ) from error
    with lines:
        lines.seek(start)
        for line in lines:
            if not line.endswith(b"\n"):  # it is being written, or a power loss has cut it
                return
            record = _parse(line, start, path)
            start = record.end
            yield record


def read_journal(path: Path) -> list[JournalRecord]:
    """All complete records, with a warning if the last line is cut.

    Raises:
        TrackingError: As `read_records`.
    """
    records = list(read_records(path))
    warn_if_cut(path, records[-1].end if records else 0)
    return records


def read_header(path: Path) -> JournalRecord:
    """The first record, which names the journal and its schema.

    Raises:
        TrackingError: As `read_records`, and if the journal is empty.
    """
    for record in read_records(path):
        return record
    raise _not_a_journal(path, "an empty file")


def warn_if_cut(path: Path, end: int) -> None:
    """Warn if a journal does not end with its last complete record, whose end is `end`."""
    if cut := path.stat().st_size - end:
        logger.warning(
            "%s ends in the middle of a record (power loss?): the last %d bytes are left out",
            path,
            cut,
        )


def _parse(line: bytes, start: int, path: Path) -> JournalRecord:
    try:
        body = json.loads(line)
        kind, time_ms = body.pop("kind"), body.pop("time_ms")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        if start == 0:
            raise _not_a_journal(path, repr(line[:60])) from error
        raise TrackingError(
            f"the journal is damaged at byte {start}",
            where=path,
            got=repr(line[:60]),
            remedy=f"keep a copy, then cut it there: truncate -s {start} {path}",
        ) from error
    if start == 0:
        schema = body.get("schema")
        if not isinstance(schema, int):
            raise _not_a_journal(path, "a first record without a schema")
        if schema > SCHEMA:
            raise newer_error("the journal", path, schema, SCHEMA)
    return JournalRecord(kind, time_ms, body, start + len(line))


def _not_a_journal(path: Path, got: str) -> TrackingError:
    return TrackingError(
        "this is not a journal",
        where=path,
        got=got,
        remedy="move the file away, or choose another run.name",
    )


def _held_error(path: Path) -> TrackingError:
    # Each process that opens a journal records its host and process id first, see `RunTracker`.
    holders = [record.body for record in read_records(path) if "pid" in record.body]
    holder = f"process {holders[-1]['pid']} on {holders[-1]['host']}" if holders else "unknown"
    return TrackingError(
        "another process is writing this journal",
        where=path,
        got=holder,
        remedy="wait for that run to end, stop it, or choose another run.name",
    )


def _as_json(value: Any) -> Any:
    """The value in types that JSON has; any other object becomes its text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
