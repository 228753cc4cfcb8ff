"""A dataset as its files lie, before conversion: what every input format is read into."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from segresmamba.errors import DataError

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
RESERVED_NAMES = frozenset({"zarr.json", "dataset.json"})
"""File names at the top of a store, which no case may take."""


@dataclass(frozen=True)
class SourceCase:
    """The files of one case; none has been opened."""

    case_id: str
    images: tuple[Path, ...]
    """One per channel, in the dataset's channel order."""
    label: Path
    stacked: bool = False
    """Whether `images` is one file whose fourth axis holds the channels."""
    patient: str = ""
    """Cases of one patient stay on one side of a split; empty: the case is a patient of its own."""


@dataclass(frozen=True)
class SourceDataset:
    """What a format's reader returns."""

    name: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    """Name to value; background is 0, values run without gaps."""
    cases: tuple[SourceCase, ...]
    """Sorted by id."""
    declared_in: Path
    """The file that declares channels and labels; the folder, where the format does."""
    held_out: tuple[tuple[str, ...], ...] = ()
    """Case ids held out in each fold, where the format says so."""
    renumbered: dict[int, int] = field(default_factory=dict)
    """Value in the label files to declared value, where they differ."""


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


def inside(folder: Path, name: str, where: Path) -> Path:
    """The path of a file that a list names, which must lie in the dataset's folder.

    Raises:
        DataError: For an absolute path, or one that leaves the folder by '..'.
    """
    if not Path(name).is_absolute() and ".." not in Path(name).parts:
        return folder / name
    raise DataError(
        "a listed file lies outside the dataset",
        where=where,
        got=repr(name),
        remedy="name files relative to the folder of the list, without '..'",
    )


def strip_ending(name: str) -> str:
    """A file's name without .nii.gz, .nii, .nrrd or .mha."""
    for ending in VOLUME_ENDINGS:
        if name.endswith(ending):
            return name.removesuffix(ending)
    return name


def check_unique(cases: tuple[SourceCase, ...], where: Path) -> tuple[SourceCase, ...]:
    """Sort cases by id and refuse two of the same.

    Raises:
        DataError: If there is no case, or a name comes twice.
    """
    ordered = tuple(sorted(cases, key=lambda case: case.case_id))
    twice = {a.case_id for a, b in pairwise(ordered) if a.case_id == b.case_id}
    if ordered and not twice:
        return ordered
    raise DataError(
        "two cases have the same name" if twice else "the dataset has no training case",
        where=where,
        got=", ".join(sorted(twice)[:10]) or "none",
        remedy="give each case a file name of its own" if twice else "add labelled cases",
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
