"""A selection on the terminal and on the disk: the table of why, and the winner's model folder."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from segresmamba.evaluation.candidates import SCORING, run_of
from segresmamba.evaluation.results import without_nan
from segresmamba.evaluation.selection import Selection
from segresmamba.evaluation.statistics import Statistic
from segresmamba.inference.export import (
    fingerprint_of,
    origin_of,
    refuse_used,
    write_model_folder,
)
from segresmamba.inference.label_map import cannot_write
from segresmamba.storage.atomic import write_text
from segresmamba.storage.foreign_folder import refuse_foreign_folder
from segresmamba.storage.markdown import text

_MODEL = "model"


def selection_table(selection: Selection) -> Table:
    """The candidates for a terminal, the winner first."""
    head, *rows = _cells(selection)
    table = Table(title=f"{len(selection.cases)} held-out cases; Dice by case, paired")
    table.add_column(head[0], overflow="fold")  # cut off, two candidates may look the same
    for column in head[1:]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def refuse_used_folder(folder: Path) -> None:
    """Refuse a folder that is something else, or holds the model of an earlier selection.

    Asked before anything is computed.

    Raises:
        ConfigError: If it is, or does.
    """
    refuse_foreign_folder(folder, "--out")
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
    head, *rows = ([text(cell) for cell in row] for row in _cells(selection))
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
        folder / "selection.json": json.dumps(_content(selection), indent=2, allow_nan=False),
        folder / "selection.md": "\n".join(lines),
    }
    try:
        for path, content in texts.items():
            write_text(path, content + "\n")
    except OSError as error:
        raise cannot_write(folder, error) from error
    return model, *texts


def _cells(selection: Selection) -> list[list[str]]:
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
                "winner" if row is selection.rows[0] else _interval(row.behind, 4),
            ]
            for row in selection.rows
        ),
    ]


def _content(selection: Selection) -> dict[str, Any]:
    """All of it for JSON."""
    content: dict[str, Any] = without_nan(
        {
            "winner": selection.winner.name,
            "reason": selection.reason,
            "cases": selection.cases,
            "scoring": SCORING.model_dump(mode="json"),
            "candidates": [
                {
                    "name": row.candidate.name,
                    "runs": [str(run_of(model).path) for model in row.candidate.models],
                    "dice": asdict(row.dice),
                    "hd95_mm": asdict(row.hd95_mm),
                    "behind": asdict(row.behind),
                }
                for row in selection.rows
            ],
            "postprocessing": [rule.model_dump(mode="json") for rule in selection.decision.rules],
            "reasons": selection.decision.reasons,
        }
    )
    return content


def _interval(one: Statistic, decimals: int) -> str:
    mean = f"{one.mean:.{decimals}f}"
    if math.isnan(one.low):
        return mean
    return f"{mean} [{one.low:.{decimals}f}, {one.high:.{decimals}f}]"
