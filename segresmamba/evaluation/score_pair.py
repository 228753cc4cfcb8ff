"""One case of two folders: its two files become values. Worker processes import this module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scipy import ndimage

from segresmamba.errors import DataError
from segresmamba.evaluation.file_pairs import Pair
from segresmamba.evaluation.measures import Scoring, measure
from segresmamba.evaluation.results import CaseValues
from segresmamba.evaluation.structures import Labels, Structures, read_pair


@dataclass(frozen=True)
class Scored:
    """The values of a case, and the classes that it was scored for."""

    values: CaseValues
    members: Mapping[str, tuple[int, ...]]


def score_pair(
    pair: Pair, structures: Structures, scoring: Scoring, threads: int
) -> Scored | DataError:
    """Score a case. An error is returned, so that it does not end the other cases."""
    try:
        maps = read_pair(pair.prediction, pair.reference, structures)
        members = structures.members
        if members is None:
            found = _values(maps.prediction_DHW) | _values(maps.reference_DHW)
            members = {f"label {value}": (value,) for value in sorted(found)}
        values = measure(
            maps.prediction_DHW,
            maps.reference_DHW,
            members,
            maps.spacing_mm,
            scoring,
            threads=threads,
        )
    except DataError as error:
        return error
    except MemoryError:
        return DataError(
            "a case does not fit into memory",
            where=pair.reference,
            got="no memory left",
            remedy="run again with fewer workers, or on a machine with more memory",
        )
    return Scored(values, members)


def _values(label: Labels) -> set[int]:
    """The label values that occur, without the background."""
    boxes = ndimage.find_objects(label)
    return {value for value, box in enumerate(boxes, start=1) if box is not None}
