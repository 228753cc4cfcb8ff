"""Journal records in the terms of MLflow: its names, its texts, its limits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeVar

from segresmamba.tracking.journal import JournalRecord

T = TypeVar("T")

# Limits of MLflow's API.
METRICS_PER_REQUEST = 1000
PARAMS_PER_REQUEST = 100
TAGS_PER_REQUEST = 100
NAME_CHARACTERS = 250
PARAM_CHARACTERS = 6000
DIGEST_CHARACTERS = 36

RECORDS_PER_BATCH = 200
"""Records that are sent between two moves of the cursor in mlflow.json."""


class MetricPoint(NamedTuple):
    """One value of a metric, in the order of `mlflow.entities.Metric`."""

    key: str
    value: float
    timestamp: int
    step: int


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as flat texts, each written as in an override.

    Example:
        >>> flatten({"train": {"lr": 1e-4, "threads": None}, "patch": [64, 64, 64]})
        {'train.lr': '0.0001', 'train.threads': 'null', 'patch': '[64, 64, 64]'}
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def valid_name(key: str) -> str:
    """The key with only characters that MLflow allows, and without empty or ".." path parts."""
    allowed = "".join(char if char.isalnum() or char in "_-. :/" else "_" for char in key)
    parts = [part for part in PurePosixPath(allowed).parts if part not in ("/", "//", "..")]
    return ("/".join(parts) or "_")[:NAME_CHARACTERS].rstrip("/")


def new_points(record: JournalRecord, last_step: dict[str, int]) -> list[MetricPoint]:
    """The values of a metrics record that are new, which `last_step` then remembers.

    A value is new if its step is above the last step of its key. After a resume this drops the
    steps that are trained again: MLflow cannot take back a value, so the first one stays.

    Args:
        record: The record.
        last_step: Highest step so far of each key; changed in place.
    """
    step = record.body["step"]
    values = dict(record.body["values"])
    if record.body["epoch"] is not None:
        values["epoch"] = record.body["epoch"]
    new = [key for key in values if step > last_step.get(key, -1)]
    last_step.update(dict.fromkeys(new, step))
    return [MetricPoint(valid_name(key), float(values[key]), record.time_ms, step) for key in new]


def batches(records: Iterable[JournalRecord]) -> Iterator[list[JournalRecord]]:
    """Groups of consecutive records. What changes the run itself is a group of its own."""
    batch: list[JournalRecord] = []
    for record in records:
        is_alone = record.kind in {"status", "attempt"}
        if batch and (is_alone or len(batch) == RECORDS_PER_BATCH):
            yield batch
            batch = []
        batch.append(record)
        if is_alone:
            yield batch
            batch = []
    if batch:
        yield batch


def chunks(items: list[T], size: int) -> Iterator[list[T]]:
    """The items in lists of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
