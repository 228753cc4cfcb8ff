"""Rules that clean a label map: which connected components of a class are kept.

Rules are decided on held-out cases (`segresmamba.evaluation.decide_rules`) and stored beside the
weights that they were decided for.

Voxels that touch by a face, an edge or a corner are connected, and a removed component becomes
background, both as in nnU-Net (nnunetv2/postprocessing/remove_connected_components.py).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError
from scipy import ndimage

from segresmamba.config.section import Section
from segresmamba.errors import DataError
from segresmamba.storage.atomic import write_text

logger = logging.getLogger(__name__)

_FILE = "postprocessing.json"
_VERSION = 1
_CONNECTED = np.ones((3, 3, 3))
_ROUNDING = 1e-6  # of a voxel: sizes in mm^3 are products of rounded numbers


class Rule(Section):
    """What is kept of one class or region."""

    name: str
    """The class or region; `foreground` for all classes together."""
    values: tuple[int, ...]
    """Its label values."""
    keep_largest: bool = False
    """Remove every connected component but the largest."""
    minimum_mm3: Annotated[float, Field(ge=0)] = 0.0
    """Remove connected components that are smaller than this."""


class Postprocessing(Section):
    """The rules for some weights, and why they are the rules."""

    version: int = _VERSION
    step: int
    """The training step of the weights. The rules hold for no others."""
    rules: tuple[Rule, ...]
    """In the order in which they are applied; empty if nothing helped."""
    cases: tuple[str, ...] = ()
    """The held-out cases on which they were decided."""
    reasons: tuple[str, ...] = ()
    """A sentence on each rule that was tried."""


def apply(
    label: npt.NDArray[Any], rules: Sequence[Rule], spacing_mm: Sequence[float]
) -> npt.NDArray[Any]:
    """Clean a label map.

    Args:
        label: Label values on any three axes; it is not changed.
        rules: The rules, applied one after the other.
        spacing_mm: Size of a voxel along each axis.

    Returns:
        An array of the same shape and dtype; `label` itself if there is no rule.
    """
    if not rules:
        return label
    cleaned = label.copy()
    for rule in rules:
        mask = np.isin(cleaned, rule.values)
        for box in ndimage.find_objects(mask.astype(np.uint8)):  # one, or none
            components = connected_components(mask[box])
            kept = kept_components(rule, np.bincount(components.ravel()), prod(spacing_mm))
            cleaned[box][mask[box] & ~kept[components]] = 0
    return cleaned


def connected_components(mask: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Number the components of a mask from 1; 0 is what lies outside."""
    components: npt.NDArray[Any] = ndimage.label(mask, _CONNECTED)[0]
    return components


def kept_components(
    rule: Rule, voxels: npt.NDArray[np.intp], voxel_mm3: float
) -> npt.NDArray[np.bool_]:
    """Which components a rule keeps.

    Args:
        rule: The rule.
        voxels: The size of each component by its number; what lies outside, number 0, is kept.
        voxel_mm3: Volume of a voxel.
    """
    kept: npt.NDArray[np.bool_] = voxels >= rule.minimum_mm3 / voxel_mm3 - _ROUNDING
    if rule.keep_largest and len(voxels) > 1:
        kept &= np.arange(len(voxels)) == 1 + voxels[1:].argmax()
    kept[0] = True
    return kept


def write_postprocessing(weights: Path, record: Postprocessing) -> Path:
    """Store rules beside the weights that they were decided for.

    Returns:
        The file.

    Raises:
        OSError: If it cannot be written.
    """
    path = weights.with_name(_FILE)
    write_text(path, record.model_dump_json(indent=2) + "\n")
    return path


def read_rules(weights: Path, step: int) -> tuple[Rule, ...]:
    """Read the rules that are stored beside weights.

    Args:
        weights: The file of the weights.
        step: Their training step. Rules for the weights of another step are not used, and a warning
            says so.

    Returns:
        The rules; none if nothing was decided.

    Raises:
        DataError: If the file is damaged, or a newer version wrote it.
    """
    path = weights.with_name(_FILE)
    try:
        record = Postprocessing.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        raise _unusable(path, str(error).splitlines()[0]) from error
    if record.version > _VERSION:
        raise _unusable(path, f"version {record.version}, this program knows {_VERSION}")
    if record.step != step:
        logger.warning(
            "%s was decided for the weights of step %d, these are of step %d: it is not applied",
            path,
            record.step,
            step,
        )
        return ()
    return record.rules


def _unusable(path: Path, got: str) -> DataError:
    return DataError(
        "the post-processing beside the weights cannot be used",
        where=path,
        got=got,
        remedy="decide it again with `segresmamba evaluate RUN --decide-postprocessing`, or delete "
        "the file: nothing is removed then",
    )
