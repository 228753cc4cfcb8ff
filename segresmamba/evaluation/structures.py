"""The classes of label files: declared in a dataset.json or by the user, or as they are found."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from segresmamba.data.formats.source import read_description
from segresmamba.data.volumes.geometry import (
    Affine,
    OriginalGrid,
    ras_grid,
    shear_degrees,
    spacing_mm,
)
from segresmamba.data.volumes.label import read_label
from segresmamba.data.volumes.voxel_file import open_voxels
from segresmamba.errors import ConfigError, DataError, warn_once

logger = logging.getLogger(__name__)

_LARGEST = 2**15 - 1
_MOST_SHEAR_DEGREES = 1.0
_BACKGROUND, _IGNORE = "background", "ignore"
_DECLARATION = re.compile(r"(?P<name>[^=]+)=(?P<values>\d+(\+\d+)*)")

Labels = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Structures:
    """The classes that are scored."""

    members: Mapping[str, tuple[int, ...]] | None
    """Label values of each class or region; None takes each value that occurs as a class."""
    ignore_value: int | None = None
    """Value of voxels that nobody has annotated."""

    @property
    def declared(self) -> dict[str, int]:
        """A name for each value that a file may have, background among them."""
        if self.members is None:
            return {str(value): value for value in range(_LARGEST + 1)}
        names = {value[0]: name for name, value in self.members.items() if len(value) == 1}
        values = sorted({value for values in self.members.values() for value in values} - {0})
        return {_BACKGROUND: 0} | {names.get(value, f"label {value}"): value for value in values}


@dataclass(frozen=True)
class LabelPair:
    """The label maps of a case on one RAS grid."""

    prediction_DHW: Labels
    reference_DHW: Labels
    spacing_mm: tuple[float, float, float]


def read_pair(prediction: Path, reference: Path, structures: Structures) -> LabelPair:
    """Read the two label maps of a case. Where the reference is not annotated, both become 0.

    Raises:
        DataError: If a file is missing or damaged, holds anything but declared integers, or the
            two do not have the same grid. The order of their axes may differ.
    """
    header = open_voxels(reference).header
    grid = OriginalGrid.from_header(header, np.uint8)
    declared, ignored = structures.declared, structures.ignore_value
    known = declared if ignored is None else declared | {_IGNORE: ignored}
    expected, _ = read_label(reference, known, grid)
    found, _ = read_label(prediction, declared, grid, other=f"the label {reference}")
    if ignored is not None:
        found, expected = (one * (expected != ignored) for one in (found, expected))
    _, affine = ras_grid(grid.shape_XYZ, grid.affine)
    warn_of_shear(affine, str(reference))
    return LabelPair(found, expected, spacing_mm(affine))


def warn_of_shear(affine: Affine, name: str) -> None:
    """Warn of axes that are not at right angles: distances are measured as if they were."""
    if (degrees := shear_degrees(affine)) > _MOST_SHEAR_DEGREES:
        straight_mm3 = prod(spacing_mm(affine))
        warn_once(
            logger,
            "%s: the axes are %.3g degrees off a right angle (a tilted gantry?); volumes and "
            "distances are those of straight axes, with voxels of %.4g mm3 instead of %.4g",
            *(name, degrees, straight_mm3, abs(np.linalg.det(affine[:3, :3]))),
        )


class _DatasetJson(BaseModel):
    """The key of a dataset.json that declares the labels."""

    labels: dict[str, int | list[int] | str]


def structures_from_json(path: Path) -> Structures:
    """Read the labels that a dataset.json declares: nnU-Net's with regions, or the Decathlon's.

    Raises:
        DataError: If it cannot be read, or declares no class.
    """
    remedy = "give the classes as --labels name=value,..."
    labels = read_description(path, _DatasetJson, remedy).labels
    if all(isinstance(value, str) for value in labels.values()):  # the Decathlon: value to name
        labels = {str(name): value for value, name in labels.items()}
    try:
        values = {
            name: tuple(map(int, value)) if isinstance(value, list) else (int(value),)
            for name, value in labels.items()
        }
    except ValueError as error:
        raise DataError(
            "a label has no integer value", where=f"{path}: labels", got=labels, remedy=remedy
        ) from error
    return _checked(values, f"{path}: labels")


def structures_from_text(text: str) -> Structures:
    """Parse `--labels`: `liver=1,tumour=2,whole=1+2`; `ignore=3` is not a class.

    Raises:
        ConfigError: If it is written otherwise.
    """
    values = {}
    for part in text.split(","):
        found = _DECLARATION.fullmatch(part.strip())
        if found is None or found["name"].strip() in values:
            raise ConfigError(
                "labels are given as names with values, each name once",
                where="--labels",
                got=part.strip() or repr(text),
                remedy="write --labels liver=1,tumour=2 and regions as whole=1+2",
            )
        values[found["name"].strip()] = tuple(map(int, found["values"].split("+")))
    return _checked(values, "--labels")


def _checked(values: dict[str, tuple[int, ...]], where: str) -> Structures:
    ignored = values.pop(_IGNORE, None)
    members = {name: found for name, found in values.items() if set(found) != {0}}
    every = {value for found in members.values() for value in found} | set(ignored or ())
    if not members or not all(0 < value <= _LARGEST for value in every):
        raise DataError(
            f"classes need label values from 1 to {_LARGEST}",
            where=where,
            got=values or "no class",
            remedy="declare at least one class; only the background may have the value 0",
        )
    if ignored and (len(ignored) != 1 or ignored[0] in {v for f in members.values() for v in f}):
        raise DataError(
            "the value of voxels without annotation belongs to a class too",
            where=where,
            got=f"ignore={'+'.join(map(str, ignored))}",
            remedy="give `ignore` one value of its own",
        )
    return Structures(members, ignored[0] if ignored else None)
