"""Chooses among trained candidates, and ensembles of two, by their held-out cases."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.table import Table

from segresmamba.errors import DataError
from segresmamba.evaluation.candidates import (
    SCORING,
    Candidate,
    Progress,
    find_candidates,
    pair,
    run_of,
)
from segresmamba.evaluation.decide_rules import Decision, decide_rules
from segresmamba.evaluation.results import without_nan
from segresmamba.evaluation.runs import KeptPredictions
from segresmamba.evaluation.statistics import Statistic, statistics
from segresmamba.inference.export import (
    fingerprint_of,
    origin_of,
    refuse_used,
    write_model_folder,
)
from segresmamba.inference.label_map import cannot_write
from segresmamba.storage.atomic import write_text
from segresmamba.storage.markdown import text
from segresmamba.task.classes import Classes

logger = logging.getLogger(__name__)

_MODEL = "model"


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

    @property
    def table(self) -> Table:
        """For a terminal."""
        head, *rows = self.cells
        table = Table(title=f"{len(self.cases)} held-out cases; Dice by case, paired")
        for column in head:
            table.add_column(column, justify="left" if column == head[0] else "right")
        for row in rows:
            table.add_row(*row)
        return table

    @property
    def cells(self) -> list[list[str]]:
        """The table as texts, its head first."""
        head = ["candidate", "runs", "Dice", "HD95 (mm)", "behind the winner"]
        return [
            head,
            *(
                [
                    row.candidate.name,
                    str(len(row.candidate.models)),
                    _interval(row.dice, 4),
                    _interval(row.hd95_mm, 2),
                    "winner" if row is self.rows[0] else _interval(row.behind, 4),
                ]
                for row in self.rows
            ),
        ]

    def content(self) -> dict[str, Any]:
        """All of it for JSON."""
        content: dict[str, Any] = without_nan(
            {
                "winner": self.winner.name,
                "reason": self.reason,
                "cases": self.cases,
                "scoring": SCORING.model_dump(mode="json"),
                "candidates": [
                    {
                        "name": row.candidate.name,
                        "runs": [str(run_of(model).path) for model in row.candidate.models],
                        "dice": asdict(row.dice),
                        "hd95_mm": asdict(row.hd95_mm),
                        "behind": asdict(row.behind),
                    }
                    for row in self.rows
                ],
                "postprocessing": [rule.model_dump(mode="json") for rule in self.decision.rules],
                "reasons": self.decision.reasons,
            }
        )
        return content


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
    return Selection(rows, tuple(cases), _decide(ranked[0], workers, progress))


def refuse_used_folder(folder: Path) -> None:
    """Refuse a folder that holds the model of an earlier selection, before anything is computed.

    Raises:
        ConfigError: If it does.
    """
    refuse_used(folder / _MODEL)


def write_selection(folder: Path, selection: Selection, licence: str) -> tuple[Path, ...]:
    """Write the winner as a model folder, and selection.json and selection.md beside it.

    Args:
        folder: Where to write; created.
        selection: What was chosen.
        licence: Licence of the weights.

    Returns:
        The model folder and the two files.

    Raises:
        UserError: If something cannot be written, or the weights cannot be read.
    """
    rules = selection.decision.rules
    models = [replace(model, postprocessing=rules) for model in selection.winner.models]
    runs = [run_of(model).path for model in models]
    origins = [origin_of(run) for run in runs]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    model = write_model_folder(folder / _MODEL, models, origins, fingerprint_of(runs[0]), licence)
    head, *rows = ([text(cell) for cell in row] for row in selection.cells)
    lines = [
        "# Selection",
        "",
        text(selection.reason),
        "",
        *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)),
        "",
        f"Mean over {len(selection.cases)} held-out cases with its 95 % bootstrap interval; the "
        "last column is paired by case. The scores are those without post-processing.",
        "",
        *(f"- post-processing: {text(reason)}" for reason in selection.decision.reasons),
    ]
    texts = {
        folder / "selection.json": json.dumps(selection.content(), indent=2, allow_nan=False),
        folder / "selection.md": "\n".join(lines),
    }
    try:
        for path, content in texts.items():
            write_text(path, content + "\n")
    except OSError as error:
        raise cannot_write(folder, error) from error
    return model, *texts


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


def _decide(winner: Candidate, workers: int, progress: Progress) -> Decision:
    """Decide the post-processing on all held-out cases of the winner."""
    first = winner.models[0]
    members = Classes.from_labels(first.config, first.facts.labels).members
    with TemporaryDirectory() as temporary:
        kept = KeptPredictions(Path(temporary), originals=True)
        cases = winner.predicted(kept, workers, progress)
        return decide_rules(kept.cases(cases), members)


def _interval(one: Statistic, decimals: int) -> str:
    mean = f"{one.mean:.{decimals}f}"
    if math.isnan(one.low):
        return mean
    return f"{mean} [{one.low:.{decimals}f}, {one.high:.{decimals}f}]"
