"""Chooses among trained candidates, and ensembles of two, by their held-out cases."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from segresmamba.errors import DataError
from segresmamba.evaluation.candidates import (
    Candidate,
    Progress,
    find_candidates,
    pair,
)
from segresmamba.evaluation.decide_rules import Decision, decide_rules
from segresmamba.evaluation.runs import KeptPredictions
from segresmamba.evaluation.statistics import Statistic, statistics
from segresmamba.task.classes import Classes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """A candidate beside the winner, over the cases that all have."""

    candidate: Candidate
    dice: Statistic
    hd95_mm: Statistic
    behind: Statistic
    """Dice of the winner minus its own, case by case."""


@dataclass(frozen=True)
class Selection:
    """What was chosen, and why."""

    rows: tuple[Row, ...]
    """The winner first, then by Dice."""
    cases: tuple[str, ...]
    """The cases that all candidates had held out."""
    decision: Decision
    """The post-processing of the winner."""

    @property
    def winner(self) -> Candidate:
        """The candidate of the highest mean Dice."""
        return self.rows[0].candidate

    @property
    def reason(self) -> str:
        """A sentence on how sure the choice is."""
        first, *others = self.rows
        if not others:
            return f"{first.candidate.name} is the only candidate"
        second = others[0]
        ahead = f"{second.behind.mean:.4f} ahead of {second.candidate.name}"
        if math.isnan(second.behind.low):
            return f"{first.candidate.name}: Dice {ahead}, on a single case"
        sure = second.behind.low > 0
        return (
            f"{first.candidate.name}: Dice {ahead}, 95 % interval "
            f"[{second.behind.low:.4f}, {second.behind.high:.4f}]"
            + ("" if sure else ": these cases do not tell the two apart")
        )


def select(
    targets: Sequence[Path], *, ensembles: bool = True, workers: int = 1, progress: Progress
) -> Selection:
    """Compare candidates on the cases that they held out, and choose the best.

    Args:
        targets: Run folders, folders of runs, or sweeps.
        ensembles: Whether to try the ensembles of two candidates. Each predicts all cases again.
        workers: Classes of a case that are scored at the same time.
        progress: Given what is computed, returns what is called with the numbers of cases.

    Raises:
        UserError: If there is no candidate, or they have no held-out case in common.
    """
    candidates = find_candidates(targets, workers, progress)
    if ensembles:
        pairs = [pair(*two, workers, progress) for two in combinations(candidates, 2)]
        candidates += [one for one in pairs if one is not None]
    cases = _common_cases(candidates)
    ranked = sorted(candidates, key=lambda one: -_values(one, cases, "dice").mean())
    best = _values(ranked[0], cases, "dice")
    rows = tuple(
        Row(
            one,
            _statistic(_values(one, cases, "dice")),
            _statistic(_values(one, cases, "hd95_mm")),
            _statistic(best - _values(one, cases, "dice")),
        )
        for one in ranked
    )
    winner = ranked[0]
    first = winner.models[0]
    members = Classes.from_labels(first.config, first.facts.labels).members
    with TemporaryDirectory() as temporary:
        kept = KeptPredictions(Path(temporary), originals=True)
        held_out = winner.predicted(kept, workers, progress)
        return Selection(rows, tuple(cases), decide_rules(kept.cases(held_out), members))


def _common_cases(candidates: Sequence[Candidate]) -> list[str]:
    common = set[str].intersection(*(set(one.cases) for one in candidates))
    if not common:
        held_out = "; ".join(f"{one.name}: {', '.join(list(one.cases)[:3])}" for one in candidates)
        raise DataError(
            "the candidates have no held-out case in common",
            where="RUN...",
            got=held_out,
            remedy="train them on the same folds of one store (train.fold=all trains every fold)",
        )
    for one in candidates:
        if left := len(one.cases) - len(common):
            logger.warning("%s: %d of its cases are not compared", one.name, left)
    return sorted(common)


def _values(candidate: Candidate, cases: Sequence[str], metric: str) -> np.ndarray[Any, Any]:
    return np.array([candidate.mean(case_id, metric) for case_id in cases])


def _statistic(values: np.ndarray[Any, Any]) -> Statistic:
    return statistics(values[:, None, None])[0][0]
