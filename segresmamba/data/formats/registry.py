"""The formats that `convert` reads, and how to find out which of them a folder has."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from segresmamba.config import plugins
from segresmamba.config.explain import suggestion
from segresmamba.data.formats.bids import find_bids, read_bids
from segresmamba.data.formats.brats import find_brats, read_brats
from segresmamba.data.formats.datalist import (
    find_decathlon,
    find_monai,
    read_decathlon,
    read_monai,
)
from segresmamba.data.formats.dicom import find_dicom, read_dicom
from segresmamba.data.formats.nnunet import find_nnunet, read_nnunet
from segresmamba.data.formats.source import SourceDataset
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)

AUTO = "auto"


@dataclass(frozen=True)
class Format:
    """One way in which the files of a dataset are laid out."""

    find: Callable[[Path], str | None]
    """Says in a few words why a folder may have the format; None if nothing suggests it."""
    read: Callable[[Path], SourceDataset]
    """Lists the labelled cases; opens no image."""


FORMATS = {
    "nnunet": Format(find_nnunet, read_nnunet),
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
        name: One of `all_formats`, or a `Format` elsewhere as in package.module:NAME, or "auto",
            which logs what it found and why.

    Raises:
        DataError: If the format is unknown or cannot be found out, or the dataset contradicts it.
        ConfigError: If a format elsewhere cannot be imported.
    """
    if ":" in name:
        return _load_format(name, "--format").read(source)
    if name == AUTO:
        name = detect(source)
    if name not in (known := FORMATS if name in FORMATS else all_formats()):
        raise DataError(
            "there is no such format",
            where="--format",
            got=name,
            remedy=f"{suggestion(name, list(known))}choose one of {AUTO}, {', '.join(known)}",
        )
    return known[name].read(source)


def all_formats() -> dict[str, Format]:
    """The formats here and those of other packages: entry points of the group segresmamba.readers.

    Such an entry point names a `Format`. It cannot replace a format here.

    Raises:
        DataError: If one is something else.
        ConfigError: If one cannot be imported.
    """
    others: dict[str, Format] = {}
    for name, target in plugins.entry_points(plugins.READERS).items():
        others[name] = _load_format(target, f"entry point {name} of {plugins.READERS}")
    return others | FORMATS


def _load_format(target: str, key: str) -> Format:
    """The format that a target names, for the option or entry point `key`."""
    found = plugins.load_target(target, key)
    if isinstance(found, Format):
        return found
    raise DataError(
        "the target is no format",
        where=key,
        got=f"{target} is {type(found).__name__}",
        remedy="name an object of segresmamba.data.formats.registry.Format",
    )


def detect(source: Path) -> str:
    """Find out a dataset's format, and log why it is that one.

    Raises:
        DataError: If no format fits, or several do.
    """
    known = all_formats()
    found = {name: reason for name, kind in known.items() if (reason := kind.find(source))}
    if len(found) == 1:
        ((name, reason),) = found.items()
        logger.info("format %s: %s", name, reason)
        return name
    if not found and (source / "dataset.json").exists():
        return "nnunet"  # its reader reports what dataset.json lacks
    raise DataError(
        "the folder fits several formats" if found else "the folder fits no known format",
        where=source,
        got="; ".join(f"{name} ({reason})" for name, reason in found.items())
        or ("no such file or folder" if not source.exists() else "no files of a known format"),
        remedy=f"give its format with --format, one of {', '.join(known)}",
    )
