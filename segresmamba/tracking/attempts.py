"""Which values of a journal belong to the weights that exist.

A start goes on from a checkpoint. Where the journal already has later steps, it trains them again.
With the same settings their values come out the same, and the first ones stay. With other settings,
or after the run had finished, the earlier values belong to weights that are gone. The tracker then
appends {"kind": "attempt", "step": 100}: whatever stands before this line and is of a later step
belongs to an earlier attempt. It stays in the journal, and is not shown as a value of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from segresmamba.config import changes_result
from segresmamba.tracking.journal import JournalRecord
from segresmamba.tracking.mapping import flatten

_OF_A_STEP = ("metrics", "model")
# Only after its settings are recorded, a start finds out whether it begins another attempt.
_PRELUDE = ("params", "tags", "dataset", "artifact")


def is_superseded(record: JournalRecord, attempt_step: float) -> bool:
    """Whether a record is of an earlier attempt than one that went on from `attempt_step`."""
    return record.kind in _OF_A_STEP and record.body["step"] > attempt_step


def current(records: Sequence[JournalRecord]) -> list[JournalRecord]:
    """The records of a whole journal without those of earlier attempts."""
    kept, step = [], float("inf")
    for record in reversed(records):
        if record.kind == "attempt":
            step = min(step, record.body["step"])
        if not is_superseded(record, step):
            kept.append(record)
    return kept[::-1]


def marked(records: Iterable[JournalRecord]) -> list[JournalRecord]:
    """The records, with a mark of each attempt that an earlier version began without one.

    Those versions recorded the other settings, and then values of steps that were there already.
    """
    found, settings, has_changed = list[JournalRecord](), dict[str, str](), False
    for record in records:
        match record.kind:
            case "params":
                before, settings = settings, _settings(record.body["values"])
                known = before.keys() & settings.keys()
                has_changed = any(before[key] != settings[key] for key in known)
            case "attempt":
                has_changed = False
            case "metrics" if has_changed:
                step = record.body["step"] - 1
                found.append(replace(record, kind="attempt", body={"step": step}))
                has_changed = False
        found.append(record)
    return found


def attempts_first(
    records: Iterable[JournalRecord], end: int, *, wait: bool
) -> Iterator[JournalRecord]:
    """The records with each attempt before the start that began it, whose settings belong to it.

    Args:
        records: Records in the order of the journal.
        end: Offset of the first one.
        wait: Leave out a start at the end of which nothing is known yet but its settings.
    """
    start: list[JournalRecord] = []
    for record in records:
        is_attempt = record.kind == "attempt"
        if start and record.kind in _PRELUDE:
            start.append(record)
            continue
        if start and is_attempt:
            yield replace(record, end=end)  # the start is still to come
        yield from start
        end = start[-1].end if start else end
        is_said, start = bool(start) and is_attempt, []
        if record.kind == "status" and record.body["status"] == "running":
            start = [record]
        elif not is_said:
            yield record
            end = record.end
    if not wait:
        yield from start


def goes_back(records: Sequence[JournalRecord], step: int) -> bool:
    """Whether later values belong to other weights than those that the last start will train.

    Args:
        records: The whole journal, with the settings and the dataset of the last start.
        step: The step that this start goes on from.
    """
    settings, dataset, finished = dict[str, str](), "", False
    later: list[tuple[dict[str, str], str]] = []
    for record in current(records):
        match record.kind:
            case "params":
                settings = _settings(record.body["values"])
            case "dataset":
                dataset = record.body["digest"]
            case "metrics" if record.body["step"] > step:
                later.append((settings, dataset))
            case "status":
                finished |= bool(later) and record.body["status"] == "finished"
    return finished or any(
        before != dataset or any(old[key] != settings[key] for key in old.keys() & settings.keys())
        for old, before in later
    )


def missing_steps(records: Sequence[JournalRecord], step: int) -> str:
    """The steps up to the checkpoint of `step` whose losses the journal lacks; empty if none."""
    gaps: list[str] = []
    last = every = longest = 0

    def look(reached: int) -> None:
        if longest and (first := (last // longest + 1) * longest) <= reached:
            gaps.append(f"{first} to {reached // longest * longest}")

    for record in current(records):
        if record.kind == "params":
            text = flatten(record.body["values"]).get("train.log_every", "")
            every = int(text) if text.isdecimal() else 0
            longest = max(longest, every)  # where the setting changes, both may be right
        elif record.kind == "metrics" and "train/loss" in record.body["values"]:
            look(record.body["step"] - 1)
            last, longest = max(last, record.body["step"]), every
    look(step)
    return ", ".join(gaps)


def _settings(values: Mapping[str, Any]) -> dict[str, str]:
    """What changes a result. The dataset counts by its digest, because a store may be moved."""
    flat = flatten(values)
    return {key: flat[key] for key in flat if changes_result(key) and key != "data.store"}
