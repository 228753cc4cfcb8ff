"""The lines of a journal, as they are written and as they are found again.

A disk or a person may damage, move, repeat or remove any line. So each line has its number, "n",
and ends with a checksum of itself, "check"; lines of earlier versions have neither. What is read
back is sound, complete as far as it still exists, and in the order in which it was written.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO

from segresmamba.errors import warn_once
from segresmamba.storage.digest import digest_of
from segresmamba.tracking.protocol import TrackingError, newer_error

logger = logging.getLogger(__name__)

SCHEMA = 1
# What a record of each kind has at least.
_FIELDS: dict[str, dict[str, type | UnionType]] = {
    "run": {"schema": int, "id": str, "name": str},
    "params": {"values": dict},
    "tags": {"values": dict},
    "metrics": {"step": int, "epoch": int | float | None, "values": dict},
    "artifact": {"path": str, "folder": str},
    "dataset": {"name": str, "digest": str, "source": str, "profile": dict},
    "model": {
        "path": str,
        "step": int,
        "loader": str,
        "requirements": list,
        "register": str | None,
    },
    "status": {"status": str},
    "attempt": {"step": int},
}
_STATUSES = ("running", "finished", "failed", "preempted")
_BEGIN = re.compile(rb'\{"kind": "')
_CHECK = b', "check": "'
_DECODER = json.JSONDecoder()
_BEYOND = 1 << 63  # MLflow's steps and times are integers of 64 bits
_SHOWN_LINES = 10


@dataclass(frozen=True)
class JournalRecord:
    """One line of a journal.

    Attributes:
        kind: run, params, tags, metrics, artifact, dataset, model, status or attempt.
        time_ms: When it was written, in milliseconds since 1970.
        body: The fields of this kind.
        end: Offset in bytes where reading goes on after this record.
        number: How many records were written before it; None in a line of an earlier version.
        check: Checksum of the line; empty in a line of an earlier version.
    """

    kind: str
    time_ms: int
    body: dict[str, Any]
    end: int
    number: int | None = None
    check: str = ""


@dataclass
class Faults:
    """What is wrong with a journal. The lists have numbers of lines, counted from 1."""

    damaged: list[int] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    missing: int = 0
    """Records whose number nothing has any more, such as those of damaged lines."""

    def __str__(self) -> str:
        """Everything in one line; empty if nothing is wrong."""
        kinds = {"damaged": self.damaged, "out of order": self.moved, "repeated": self.repeated}
        found = [
            f"{len(lines)} {kind} (line {', '.join(map(str, lines[:_SHOWN_LINES]))}"
            f"{', ...' if len(lines) > _SHOWN_LINES else ''})"
            for kind, lines in kinds.items()
            if lines
        ]
        return ", ".join([*found, *([f"{self.missing} missing"] if self.missing else [])])


def write_line(kind: str, time_ms: int, number: int, body: Mapping[str, Any]) -> bytes:
    """The line of a record, with its end."""
    record = {"kind": kind, "time_ms": time_ms, "n": number, **body}
    content = json.dumps(_as_json(record), allow_nan=False).encode().removesuffix(b"}")
    return content + _CHECK + digest_of([content]).encode() + b'"}\n'


class JournalReader:
    """Iterates over the sound records of a journal, and finds out what is wrong with its lines.

    A journal that is being written may end in the middle of a line; that line is not yet a record.

    Args:
        path: The journal.
        start: Offset in bytes to begin at: the `end` of a record, or 0.

    Attributes:
        faults: What is wrong with the lines that have been read.
        damaged: Where the damaged places begin and end, in bytes.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self._path, self._start = path, start
        self._lines_before: int | None = None
        self._seen: set[tuple[int, str]] = set()
        self.faults = Faults()
        self.damaged: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[JournalRecord]:
        """Read the records.

        Raises:
            TrackingError: If the file is missing, not a journal, or of a newer version.
        """
        try:
            file = self._path.open("rb")
        except OSError as error:
            raise TrackingError(
                "there is no journal to read",
                where=self._path,
                got=error.strerror,
                remedy=f"name the folder of a run, which holds {self._path.name}",
            ) from error
        with file:
            last = None if self._start else -1
            records, found = self._in_file(file), False
            for line, begin, record in records:
                found = True
                number = record.number
                if number is not None and last is not None and number != last + 1:
                    yield from self._in_order([(line, begin, record), *records], last)
                    break
                self._seen.add((number or 0, record.check))
                last = number
                yield record
        if str(self.faults):
            if not found and not self._start:
                raise not_a_journal(self._path, f"{len(self.faults.damaged)} damaged line(s)")
            warn_once(
                logger,
                "%s has faults, and all its sound records are used: %s",
                *(self._path, str(self.faults)),
            )

    def _in_file(self, file: BinaryIO) -> Iterator[tuple[int, int, JournalRecord]]:
        """Each sound record with its line and its offset; it ends where the next one begins."""
        file.seek(self._start)
        offset, held = self._start, None
        for line, content in enumerate(file, start=1):
            if not content.endswith(b"\n"):  # it is being written, or a power loss has cut it
                break
            records, damaged = split_line(content, offset)
            if damaged:
                self.damaged += damaged
                self._note(self.faults.damaged, line)
            offset += len(content)
            begin = offset - len(content)
            for record in records:
                schema = record.body["schema"] if record.kind == "run" else SCHEMA
                if schema > SCHEMA:
                    raise newer_error("the journal", self._path, schema, SCHEMA)
                if held:
                    yield held
                held = (line, begin, record)
                begin = record.end
            if held:
                held = (*held[:2], replace(held[2], end=offset))
        if held:
            yield held

    def _in_order(
        self, rest: list[tuple[int, int, JournalRecord]], last: int
    ) -> Iterator[JournalRecord]:
        """Records in the order of their numbers. A line without a number stays where it is."""
        highest, kept, numbers = last, [], set[int]()
        for line, begin, record in rest:
            number = highest if record.number is None else record.number
            if record.number is not None:
                if (number, record.check) in self._seen:
                    self._note(self.faults.repeated, line)
                    continue
                self._seen.add((number, record.check))
                numbers.add(number)
            if number < highest:
                self._note(self.faults.moved, line)
            highest = max(highest, number)
            kept.append((number, begin, record))
        self.faults.missing = highest - last - len({n for n in numbers if n > last})
        kept.sort(key=lambda entry: entry[0])  # stable
        # Reading that goes on after a record has to find all that come later in this order.
        end, later = max(record.end for _, _, record in rest), []
        for _, begin, record in reversed(kept):
            later.append(replace(record, end=end))
            end = min(end, begin)
        yield from reversed(later)

    def _note(self, lines: list[int], line: int) -> None:
        if self._lines_before is None:
            with self._path.open("rb") as file:
                self._lines_before = file.read(self._start).count(b"\n")
        lines.append(self._lines_before + line)


def split_line(line: bytes, start: int) -> tuple[list[JournalRecord], list[tuple[int, int]]]:
    """The sound records in a line, which is one, and the places of what is damaged in it.

    A line may have lost its end, so that the next record follows in the same line.
    """
    records: list[JournalRecord] = []
    damaged: list[tuple[int, int]] = []
    done = 0
    for found in _BEGIN.finditer(line):
        if found.start() < done:
            continue
        record = _parse(line[found.start() :], start + found.start())
        if record is None:
            continue
        if line[done : found.start()].strip():
            damaged.append((start + done, start + found.start()))
        records.append(record)
        done = record.end - start
    if rest := line[done:].strip():
        begin = line.index(rest, done)
        damaged.append((start + begin, start + begin + len(rest)))
    return records, damaged


def not_a_journal(path: Path, got: str) -> TrackingError:
    """The error for a file without a sound record."""
    return TrackingError(
        "this is not a journal",
        where=path,
        got=got,
        remedy="move the file away, or choose another run.name",
    )


def _parse(text: bytes, start: int) -> JournalRecord | None:
    """The record that some bytes begin with; None if there is no sound one."""
    try:
        body, length = _DECODER.raw_decode(text.decode("latin-1"))
        record = text[:length]
        check = body.pop("check", "")
        if not check:  # an earlier version wrote it, or "check" is what was damaged
            if "n" in body or text[length:].strip():
                return None
            body = json.loads(record)
        elif check != digest_of([record[: record.rindex(_CHECK)]]):
            return None
        kind, time_ms, number = body.pop("kind"), body.pop("time_ms"), body.pop("n", None)
        is_sound = _is_sound(kind, body, is_known=bool(check)) and _is_count(time_ms)
        if not (is_sound and (number is None or _is_count(number))):
            return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return JournalRecord(kind, time_ms, body, start + length, number, check)


def _is_sound(kind: str, body: Mapping[str, Any], *, is_known: bool) -> bool:
    """Whether a record has what readers take from it; of a kind yet unknown they take nothing."""
    if kind not in _FIELDS:
        return is_known
    if not all(isinstance(body.get(name, ...), kinds) for name, kinds in _FIELDS[kind].items()):
        return False
    if kind == "metrics":
        return _is_count(body["step"]) and all(map(_is_number, body["values"].values()))
    if kind == "tags":
        return all(isinstance(text, str) for text in body["values"].values())
    if kind in {"attempt", "model"}:
        return _is_count(body["step"])
    return kind != "status" or body["status"] in _STATUSES


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < _BEYOND


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return value in {"nan", "inf", "-inf"}
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < _BEYOND)


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
