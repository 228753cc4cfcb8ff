"""Whether two groups differ on the same cases: Wilcoxon's signed-rank test, corrected by Holm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from segresmamba.report.groups import Group

ALL_PAIRS_UP_TO = 6
"""More groups than these are each compared with one only."""


@dataclass(frozen=True)
class Comparison:
    """Two groups on the cases that both were evaluated on."""

    first: Group
    second: Group
    cases: int
    """Cases that both have."""
    difference: float
    """Median over the cases of Dice of the first minus Dice of the second."""
    p: float
    """Two-sided."""
    p_holm: float
    """Corrected for the number of comparisons."""

    @property
    def smallest_p(self) -> float:
        """What p can at best be with so many cases."""
        return float(min(1.0, 2.0 ** (1 - self.cases)))


def compare(groups: Sequence[Group], reference: Group | None) -> list[Comparison]:
    """Compare groups in pairs.

    Args:
        groups: Those without evaluated cases are left out.
        reference: The group to compare the others with; None compares all pairs, or, of many
            groups, all with the one of the highest Dice.

    Returns:
        The comparisons, by p; pairs without a common case are left out.
    """
    scored = [group for group in groups if group.case_dice()]
    if reference is None and len(scored) > ALL_PAIRS_UP_TO:
        reference = max(scored, key=lambda group: group.mean("dice") or 0.0)
    if reference is None:
        pairs = list(combinations(scored, 2))
    else:
        pairs = [(group, reference) for group in scored if group is not reference]
    tested = [(pair, differences) for pair in pairs if (differences := _differences(*pair))]
    values = [_wilcoxon(differences) for _, differences in tested]
    comparisons = [
        Comparison(first, second, len(differences), median(differences), p, corrected)
        for ((first, second), differences), p, corrected in zip(
            tested, values, holm(values), strict=True
        )
    ]
    return sorted(comparisons, key=lambda comparison: comparison.p)


def holm(values: Sequence[float]) -> list[float]:
    """P values corrected for their number by Holm's step-down method, in the given order.

    Example:
        >>> holm([0.25, 0.125, 0.5])
        [0.5, 0.375, 0.5]
    """
    corrected = [0.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = highest
    return corrected


def _differences(first: Group, second: Group) -> list[float]:
    ours, theirs = first.case_dice(), second.case_dice()
    return [ours[case] - theirs[case] for case in sorted(ours.keys() & theirs.keys())]


def _wilcoxon(differences: Sequence[float]) -> float:
    """The two-sided p value; 1 where every case is a tie."""
    from scipy.stats import wilcoxon

    if not any(differences):
        return 1.0
    return float(wilcoxon(differences).pvalue)
