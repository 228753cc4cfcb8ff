"""The cases that went worst, with the pictures that the evaluation drew of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from segresmamba.report.groups import Group
from segresmamba.report.measures import CaseScore, MeasuredRun

MOST_PICTURES = 12
_PER_GROUP = 3
_WIDTH, _HEIGHT = 1000, 2000  # pixels at most
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class WorstCase:
    """A case of a run."""

    group: Group
    run: MeasuredRun
    case_id: str
    score: CaseScore

    @property
    def picture(self) -> Path | None:
        """Its overlay, if the evaluation drew one."""
        return self.run.picture(self.case_id)


def worst_cases(groups: Sequence[Group]) -> list[WorstCase]:
    """The cases of the lowest Dice, at most three of each group and twelve in all, worst first.

    A case that several runs of a group were evaluated on is shown from the run that did worst.
    """
    chosen: list[WorstCase] = []
    for group in groups:
        worst: dict[str, WorstCase] = {}
        for run in group.runs:
            for case_id, score in run.cases.items():
                if case_id not in worst or score.dice < worst[case_id].score.dice:
                    worst[case_id] = WorstCase(group, run, case_id, score)
        chosen += sorted(worst.values(), key=_dice)[:_PER_GROUP]
    return sorted(chosen, key=_dice)[:MOST_PICTURES]


def small_jpeg(picture: Path) -> bytes:
    """The picture small enough for a page that carries it within itself.

    Raises:
        OSError: If it is not a picture.
    """
    buffer = BytesIO()
    with Image.open(picture) as image:
        small = image.convert("RGB")
    small.thumbnail((_WIDTH, _HEIGHT))
    small.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _dice(case: WorstCase) -> float:
    return case.score.dice
