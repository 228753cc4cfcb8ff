"""Tests whether two groups differ on the same cases.

It is Wilcoxon's signed-rank test on the Dice of each case, corrected by Holm's method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from segresmamba.report.groups import Group

ALL_PAIRS_UP_TO = 6
"""With more groups than this, each is compared with one group only."""


@dataclass(frozen=True)
class Comparison:
    """Two groups, compared on the cases that both were evaluated on."""

    first: Group
    second: Group
    cases: int
    """Number of these cases."""
    difference: float
    """Dice of the first minus Dice of the second, the median over the cases."""
    p: float
    """Two-sided p value."""
    p_holm: float
    """The p value corrected for the number of comparisons."""

    @property
    def smallest_p(self) -> float:
        """The smallest p value that the test can give with so many cases.

        With n cases there are 2^n sign patterns, and two of them are the most extreme.
        """
        return float(min(1.0, 2.0 ** (1 - self.cases)))


def compare(groups: Sequence[Group], reference: Group | None) -> list[Comparison]:
    """Compare groups in pairs.

    Args:
        groups: The groups. Those without evaluated cases are left out.
        reference: The group to compare the others with. None compares all pairs; of more than
            `ALL_PAIRS_UP_TO` groups it compares each with that of the highest Dice.

    Returns:
        The comparisons, sorted by p. Pairs without a common case are left out.
    """
    from scipy.stats import wilcoxon

    scored = [group for group in groups if group.case_dice()]
    if reference is None and len(scored) > ALL_PAIRS_UP_TO:
        reference = max(scored, key=lambda group: group.mean("dice") or 0.0)
    if reference is None:
        pairs = list(combinations(scored, 2))
    else:
        pairs = [(group, reference) for group in scored if group is not reference]
    tested = []
    for first, second in pairs:
        ours, theirs = first.case_dice(), second.case_dice()
        if common := sorted(ours.keys() & theirs.keys()):
            tested.append((first, second, [ours[case] - theirs[case] for case in common]))
    # SciPy has no p value for differences that are all zero.
    values = [
        float(wilcoxon(differences).pvalue) if any(differences) else 1.0
        for *_, differences in tested
    ]
    comparisons = [
        Comparison(first, second, len(differences), median(differences), p, corrected)
        for (first, second, differences), p, corrected in zip(
            tested, values, holm(values), strict=True
        )
    ]
    return sorted(comparisons, key=lambda comparison: comparison.p)


def holm(values: Sequence[float]) -> list[float]:
    """Correct p values for their number by Holm's step-down method, in the given order.

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
