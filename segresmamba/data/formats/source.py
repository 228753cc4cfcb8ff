"""What every format's reader returns, and the checks and helpers that readers share."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from segresmamba.data.untrusted import RESERVED_NAMES, is_case_id
from segresmamba.errors import DataError
from segresmamba.storage.json_text import json_bytes, parse_json

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".tif", ".tiff")
LABEL_ENDINGS = (*VOLUME_ENDINGS, ".zarr")
"""Also of label maps that `segresmamba predict` wrote."""

_LARGEST_LABEL = 2**15 - 1

Description = TypeVar("Description", bound=BaseModel)


@dataclass(frozen=True)
class SourceCase:
    """The files of one case. Readers list them and open none."""

    case_id: str
    images: tuple[Path, ...]
    """One per channel, in the dataset's channel order."""
    label: Path
    stacked: bool = False
    """Whether `images` is one file whose fourth axis holds the channels."""
    patient: str = ""
    """Cases of one patient stay on one side of a split. Empty: no other case is of this patient."""


@dataclass(frozen=True)
class SourceDataset:
    """A dataset as its files lie, before conversion."""

    name: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    """Name to value; background is 0, and the values ascend."""
    cases: tuple[SourceCase, ...]
    """Sorted by id."""
    declared_in: Path
    """The file that declares channels and labels; the folder, if the format itself does."""
    held_out: tuple[tuple[str, ...], ...] = ()
    """Case ids held out in each fold, if the format has folds."""
    ignore_value: int | None = None
    """Value of voxels that nobody has annotated, not among `labels`."""
    renumbered: dict[int, int] = field(default_factory=dict)
    """Value in the label files to declared value, where they differ."""


def check_case_id(case_id: str, where: Path) -> str:
    """Refuse a case name that cannot be the name of one folder in the store.

    Raises:
        DataError: For a path separator, a leading dot (so also for '..'), or a reserved name.
    """
    # Ids come from file and folder names, or from a JSON file, which may hold anything.
    if is_case_id(case_id):
        return case_id
    raise DataError(
        "a case's name cannot be a folder's name",
        where=where,
        got=repr(case_id),
        remedy="rename the case: no path separator, no leading dot, not "
        + " or ".join(sorted(RESERVED_NAMES)),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, for finding out a format; empty if there is none."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_description(path: Path, kind: type[Description], remedy: str) -> Description:
    """Read the JSON file in which a format describes its dataset.

    Args:
        path: The file.
        kind: What it has to contain.
        remedy: What to do if it cannot be read, or lacks something.

    Raises:
        DataError: Names the first key that is missing or wrong.
    """
    try:
        return kind.model_validate_json(json_bytes(path))
    except OSError as error:
        raise DataError(
            f"{path.name} cannot be read", where=path, got=error.strerror, remedy=remedy
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{path.name} does not describe the dataset as its format asks",
            where=f"{path}: {key}" if key else path,
            got=first["msg"],
            remedy=remedy,
        ) from error


def inside(folder: Path, name: str, where: Path) -> Path:
    """The path of a listed file, which must lie in the dataset's folder.

    Raises:
        DataError: For an absolute path, or one that leaves the folder through '..'.
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
    """A file's name without its ending, if that is one of `LABEL_ENDINGS` in any case."""
    found = next((ending for ending in LABEL_ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(found)]


def check_unique(cases: tuple[SourceCase, ...], where: Path) -> tuple[SourceCase, ...]:
    """Sort cases by id, and refuse two with the same id.

    Raises:
        DataError: If there is no case, or two have the same id.
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
    """Sort the declared labels by value. Any values will do: a network's channels are their ranks.

    Raises:
        DataError: Unless background is 0, there is another label, and each value occurs once and
            fits int16, the largest type of a stored label.
    """
    ordered = dict(sorted(labels.items(), key=lambda item: item[1]))
    values = list(ordered.values())
    if (
        len(values) > 1
        and (values[0], ordered.get("background")) == (0, 0)
        and len(set(values)) == len(values)
        and values[-1] <= _LARGEST_LABEL
    ):
        return ordered
    raise DataError(
        "labels must be background 0 and others from 1 to 32767, each value once",
        where=f"{where}: labels",
        got=labels,
        remedy="declare each value that occurs in the files under a name of its own",
    )
