"""A dataset as its files lie, before conversion: what every input format is read into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segresmamba.errors import DataError

RESERVED_NAMES = frozenset({"zarr.json", "dataset.json"})
"""File names at the top of a store, which no case may take."""


@dataclass(frozen=True)
class SourceCase:
    """The files of one case; none has been opened."""

    case_id: str
    images: tuple[Path, ...]
    """One per channel, in the dataset's channel order."""
    label: Path


@dataclass(frozen=True)
class SourceDataset:
    """What a format's reader returns."""

    name: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    """Name to value; background is 0, values run without gaps."""
    cases: tuple[SourceCase, ...]
    """Sorted by id."""


def check_case_id(case_id: str, where: Path) -> str:
    """Refuse a name that cannot be one folder of the store.

    Raises:
        DataError: For a path separator, a leading dot (so '..'), or a reserved name.
    """
    separators = set(case_id) & set("/\\:\0\n\r\t")
    if case_id and not separators and case_id[0] != "." and case_id not in RESERVED_NAMES:
        return case_id
    raise DataError(
        "a case's name cannot be a folder's name",
        where=where,
        got=repr(case_id),
        remedy="rename the case: no path separator, no leading dot, not "
        + " or ".join(sorted(RESERVED_NAMES)),
    )


def check_labels(labels: dict[str, int], where: Path) -> dict[str, int]:
    """Sort the declared labels by value and refuse what a network's output cannot be mapped to.

    Raises:
        DataError: Unless background is 0 and the values are 0, 1, 2, ... without gaps.
    """
    ordered = dict(sorted(labels.items(), key=lambda item: item[1]))
    values = list(ordered.values())
    if values == list(range(len(values))) and ordered.get("background") == 0 and len(values) > 1:
        return ordered
    raise DataError(
        "labels must be background 0 and then 1, 2, ... without gaps",
        where=f"{where}: labels",
        got=labels,
        remedy="renumber the labels (in the files too) and declare each with its value",
    )
