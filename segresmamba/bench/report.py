"""The table of results: as CSV, as Markdown with the paper's figures, and for a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from segresmamba.bench.result import PAPER, PAPER_SOURCE, Paper, Result, Setting
from segresmamba.storage.atomic import write_text


class _Column(NamedTuple):
    title: str
    cell: Callable[[Result], object]


def _number(value: float | None, digits: int = 3) -> str:
    """A number with three significant digits and no exponent; empty if it was not measured."""
    return "" if value is None else f"{float(f'{value:.{digits}g}'):,.10g}"


def _millions(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.2f}"


_REFERENCE = (
    _Column("parameters (M)", lambda row: _millions(row.trained_parameters)),
    _Column("dead (M)", lambda row: _millions(row.dead_parameters)),
    _Column("GMAC at 128^3", lambda row: _number(row.reference_gmacs, 4)),
    _Column("saved at 128^3 (GiB)", lambda row: _number(row.reference_saved_gib)),
    _Column("on CUDA (GiB)", lambda row: _number(row.reference_saved_cuda_gib)),
)
_MEASURED = (
    _Column("saved (GiB)", lambda row: _number(row.saved_gib)),
    _Column("peak (GiB)", lambda row: _number(row.peak_gib)),
    _Column("step (s)", lambda row: _number(row.step_s)),
    _Column("step from store (s)", lambda row: _number(row.loaded_step_s)),
    _Column("of it waiting (s)", lambda row: _number(row.data_wait_s)),
    _Column("Wh / 1000 steps", lambda row: _number(row.wh_per_1000_steps)),
    _Column("g CO2e / 1000 steps", lambda row: _number(row.co2e_g_per_1000_steps)),
    _Column("scan", lambda row: row.scan_backend or ""),
    _Column("ended", lambda row: row.status + (f": {row.note}" if row.note else "")),
)


def write_csv(path: Path, results: Sequence[Result], setting: Setting) -> None:
    """Write every field of every row, followed by the paper's figures and the setting."""
    names = [field.name for field in fields(Result)]
    printed = [f"paper_{field.name}" for field in fields(Paper)]
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow([*names, *printed, *asdict(setting)])
    for result in results:
        paper = PAPER.get(result.model)
        values = [
            float(f"{value:.4g}") if isinstance(value, float) else value
            for value in asdict(result).values()
        ]
        theirs = asdict(paper).values() if paper else [None] * len(printed)
        table.writerow([*values, *theirs, *map(_joined, asdict(setting).values())])
    write_text(path, lines.getvalue())


def write_markdown(path: Path, results: Sequence[Result], setting: Setting) -> None:
    """Write what was measured, then the paper's figures of the same networks."""
    columns = [_Column("network", lambda row: row.model), *_REFERENCE, *_MEASURED]
    powers = {row.power for row in results if row.power}
    text = [
        "# Networks side by side",
        "",
        f"{setting.device}; {setting.versions}.",
        "",
        f"Run: batch {setting.batch_size} of {_joined(setting.patch)} voxels, "
        f"{setting.precision}, mean of {setting.steps} steps after warming up; "
        f"store: {setting.data}.",
        *(f"Power: {power}." for power in sorted(powers)),
        "",
        *_rows([column.title for column in columns], [
            [str(column.cell(row)) for column in columns] for row in results
        ]),
        "",
        "Parameters, GMAC (one forward pass, scan included) and saved at 128^3 are for 4 channels, "
        "3 classes, batch 1 and bf16 autocast, counted with fake tensors: the same on any machine. "
        "Saved is what the forward pass keeps for the backward pass, at 128^3 under the CPU's "
        "autocast lists and under CUDA's, which keep norms in fp32. Peak is that of whole training "
        "steps, weights, gradients and optimizer included: tensors on a GPU, resident "
        "memory above that of the idle process on a CPU.",
    ]  # fmt: skip
    if printed := [(row.model, PAPER[row.model]) for row in results if row.model in PAPER]:
        titles = ["network", "parameters (M)", "memory (GB)", "epoch (s)", "CO2 (kg)", "remark"]
        rows = [
            [model, f"{paper.parameters_m:.2f}", _number(paper.memory_gb, 4),
             f"{paper.epoch_s:.2f}", f"{paper.co2_kg:.2f}", paper.note]
            for model, paper in printed
        ]  # fmt: skip
        text += ["", "## As the paper prints them", "", f"{PAPER_SOURCE}.", ""]
        text += _rows(titles, rows)
    write_text(path, "\n".join(text) + "\n")


def results_table(results: Sequence[Result], setting: Setting) -> Table:
    """The most important columns, for a terminal."""
    table = Table(title=f"{setting.device}, {_joined(setting.patch)}, {setting.precision}")
    ended = _Column("ended", lambda row: row.status)
    columns = [_REFERENCE[0], _REFERENCE[3], *_MEASURED[1:3], ended]
    table.add_column("network", overflow="fold")
    for column in columns:
        table.add_column(column.title, justify="left" if column is ended else "right")
    for row in results:
        table.add_row(row.model, *(str(column.cell(row)) for column in columns))
    return table


def _rows(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table as lines."""
    lines = [titles, ["---"] * len(titles), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _joined(value: object) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
