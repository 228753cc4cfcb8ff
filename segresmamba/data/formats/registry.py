"""The formats that `convert` reads, and which of them a folder is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from segresmamba.data.formats.bids import find_bids, read_bids
from segresmamba.data.formats.brats import find_brats, read_brats
from segresmamba.data.formats.datalist import (
    find_decathlon,
    find_monai,
    read_decathlon,
    read_json,
    read_monai,
)
from segresmamba.data.formats.dicom import find_dicom, read_dicom
from segresmamba.data.formats.nnunet import read_nnunet
from segresmamba.data.formats.source import SourceDataset
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)

AUTO = "auto"


@dataclass(frozen=True)
class Format:
    """One way that datasets lie on a disk."""

    find: Callable[[Path], str | None]
    """What in a folder speaks for the format, in a few words; None if nothing does."""
    read: Callable[[Path], SourceDataset]
    """Lists the labelled cases; opens no image."""


def _find_nnunet(source: Path) -> str | None:
    content = read_json(source / "dataset.json")
    return (
        "dataset.json has `channel_names` and `file_ending`"
        if ("channel_names" in content and "file_ending" in content)
        else None
    )


FORMATS = {
    "nnunet": Format(_find_nnunet, read_nnunet),
    "decathlon": Format(find_decathlon, read_decathlon),
    "monai": Format(find_monai, read_monai),
    "brats2021": Format(partial(find_brats, year=2021), partial(read_brats, year=2021)),
    "brats2023": Format(partial(find_brats, year=2023), partial(read_brats, year=2023)),
    "bids": Format(find_bids, read_bids),
    "dicom": Format(find_dicom, read_dicom),
}


def read_source(source: Path, name: str = AUTO) -> SourceDataset:
    """List the cases of a dataset of any format.

    Args:
        source: Its folder; for a MONAI datalist also the JSON.
        name: One of `FORMATS`, or "auto", which logs what it found and why.

    Raises:
        DataError: If the format is unknown, not to be told, or the dataset contradicts it.
    """
    if name == AUTO:
        name = detect(source)
    if name not in FORMATS:
        raise DataError(
            "there is no such format",
            where="--format",
            got=name,
            remedy=f"one of {AUTO}, {', '.join(FORMATS)}",
        )
    return FORMATS[name].read(source)


def detect(source: Path) -> str:
    """The name of a dataset's format; logs what spoke for it.

    Raises:
        DataError: If nothing does, or several formats are possible.
    """
    found = {name: reason for name, kind in FORMATS.items() if (reason := kind.find(source))}
    if len(found) == 1:
        ((name, reason),) = found.items()
        logger.info("format %s: %s", name, reason)
        return name
    if not found and (source / "dataset.json").exists():
        return "nnunet"  # whose reader says what dataset.json lacks
    raise DataError(
        "the folder fits several formats" if found else "the folder fits no known format",
        where=source,
        got="; ".join(f"{name} ({reason})" for name, reason in found.items())
        or ("no such file or folder" if not source.exists() else "none of their marks"),
        remedy=f"say which it is with --format, one of {', '.join(FORMATS)}",
    )
