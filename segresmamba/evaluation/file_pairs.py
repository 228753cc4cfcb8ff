"""Which files of two folders belong together: label maps of one name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segresmamba.data.formats.source import LABEL_ENDINGS, strip_ending
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)

_PROBABILITIES = ".probabilities.zarr"  # `predict --probabilities` writes them beside label maps


@dataclass(frozen=True)
class Pair:
    """The files of a case."""

    case_id: str
    prediction: Path
    reference: Path


def pair_files(predictions: Path, labels: Path) -> tuple[list[Pair], dict[str, str]]:
    """Pair label files with their predictions.

    Returns:
        The pairs, and what to say of each label that has no prediction.

    Raises:
        DataError: If a folder cannot be listed, has two files of one case or no label file, or if
            nothing belongs together.
    """
    found, expected = _by_case(predictions), _by_case(labels)
    common = sorted(found.keys() & expected.keys())
    if not common:
        raise DataError(
            "no prediction has the name of a label",
            where=predictions,
            got=f"{_first(found)}; in {labels}: {_first(expected)}",
            remedy="name a prediction as its label; the ending may be another",
        )
    if more := sorted(found.keys() - expected.keys()):
        logger.warning("%s: without a label, left out: %s", predictions, _first(more))
    pairs = [Pair(case_id, found[case_id], expected[case_id]) for case_id in common]
    missing = sorted(expected.keys() - found.keys())
    return pairs, dict.fromkeys(missing, f"there is no prediction in {predictions}")


def _by_case(folder: Path) -> dict[str, Path]:
    """The label files of a folder, by their names without the ending."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            "a folder cannot be listed",
            where=folder,
            got=error.strerror,
            remedy="give a folder of predictions and a folder of labels",
        ) from error
    files: dict[str, Path] = {}
    for path in paths:
        # macOS leaves files such as ._case_0000.nii.gz beside those that it copies.
        if path.name.startswith(".") or not path.name.lower().endswith(LABEL_ENDINGS):
            continue
        if path.name.lower().endswith(_PROBABILITIES):
            continue
        case_id = strip_ending(path.name)
        if case_id in files:
            raise DataError(
                "a folder has two files of one case",
                where=folder,
                got=f"{files[case_id].name}, {path.name}",
                remedy="move one of them away",
            )
        files[case_id] = path
    if not files:
        raise DataError(
            "a folder holds no label files",
            where=folder,
            got="no file that ends in " + ", ".join(LABEL_ENDINGS),
            remedy="give a folder of predictions and a folder of labels",
        )
    return files


def _first(names: Sequence[str] | Mapping[str, Path]) -> str:
    return ", ".join(list(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
