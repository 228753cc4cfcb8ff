"""Which cases of an evaluation are drawn: the worst ones, and the median one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from segresmamba.evaluation.results import Results

Volume = NDArray[Any]


@dataclass(frozen=True)
class Picture:
    """The volumes of a case on one RAS grid."""

    image_DHW: Volume
    reference_DHW: Volume
    prediction_DHW: Volume
    spacing_mm: tuple[float, float, float]


def chosen_cases(results: Results, worst: int) -> list[str]:
    """The cases to draw: so many of the worst, and the median one. 0 draws nothing."""
    ranked = results.ranked
    if not worst or not ranked:
        return []
    return list(dict.fromkeys([*ranked[:worst], ranked[len(ranked) // 2]]))


def draw_chosen(
    folder: Path, results: Results, worst: int, load: Callable[[str], Picture | None]
) -> None:
    """Write a picture of each chosen case; those of an earlier evaluation are deleted.

    Args:
        folder: Where to write; created.
        results: The results.
        worst: Number of the worst cases.
        load: Returns the volumes of a case; None if it cannot be drawn.

    Raises:
        OSError: If a picture cannot be written.
    """
    from segresmamba.evaluation.overlays import draw_overlay  # matplotlib

    ranked = results.ranked
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    for case_id in chosen_cases(results, worst):
        picture = load(case_id)
        if picture is None:
            continue
        dice: Mapping[str, float] = {
            name: values["dice"] for name, values in results.cases[case_id].items()
        }
        draw_overlay(
            folder / f"{case_id}.png",
            picture.image_DHW,
            picture.reference_DHW,
            picture.prediction_DHW,
            spacing_mm=picture.spacing_mm,
            members=results.members,
            dice=dice,
            title=f"{case_id}: mean Dice {results.dice(case_id):.3f}, "
            f"{standing(ranked.index(case_id), len(ranked))}",
        )


def standing(index: int, count: int) -> str:
    """Where a case stands among all that were scored, the worst first."""
    if count == 1:
        return "the only case"
    names = {count // 2: "median", count - 1: "best", 0: "worst"}  # of two, a later one counts
    return f"{names.get(index, f'number {index + 1} from the worst')} of {count} cases"
