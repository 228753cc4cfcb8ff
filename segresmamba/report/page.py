"""Writes a report: report.html, which is complete in one file, and report.md with its pictures."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

import segresmamba
from segresmamba.report import captions
from segresmamba.report.groups import (
    Group,
    WorstCase,
    by_dataset,
    differences,
    group_runs,
    have_same_convention,
    pareto_front,
    worst_cases,
)
from segresmamba.report.measures import MeasuredRun
from segresmamba.report.pictures import colours, draw_curves, draw_tradeoff, small_jpeg
from segresmamba.report.significance import compare
from segresmamba.report.sources import ReportError, find_baseline, find_runs
from segresmamba.report.tables import (
    classes_table,
    networks_table,
    number,
    runs_table,
    significance_table,
)
from segresmamba.storage import markdown
from segresmamba.storage.atomic import remove, remove_abandoned, sync_tree, temporary_path

logger = logging.getLogger(__name__)

PAGE, MARKDOWN, PICTURES = "report.html", "report.md", "report_files"


@dataclass(frozen=True)
class Report:
    """What was written."""

    page: Path
    markdown: Path
    pictures: Sequence[Path]
    runs: int
    groups: int


@dataclass(frozen=True)
class _Picture:
    """A picture of the report: a file beside report.md, and embedded in report.html."""

    name: str
    png: bytes
    inline: str
    """The embedded picture, perhaps smaller, as a data URI."""


@dataclass(frozen=True)
class _Section:
    """What the report says of one dataset."""

    groups: Sequence[Group]
    pictures: Sequence[_Picture]
    content: dict[str, Any]
    """Values of the templates by name."""


def write_report(
    targets: Sequence[str],
    out: Path,
    *,
    uri: Callable[[], str],
    root: Path | None = None,
    baseline: str | None = None,
) -> Report:
    """Compare runs and write the report.

    Args:
        targets: Run folders, folders that hold run folders, or names of MLflow experiments.
        out: Folder to write to. A report in it is replaced; other files stay.
        uri: Returns the tracking URI of MLflow; called only if a target is not a folder.
        root: Folder of all runs, which may have the login of MLflow's server.
        baseline: Name or folder of the run with which energy and Dice of the others are compared.

    Raises:
        UserError: If something cannot be read or written; nothing is then written.
    """
    with tempfile.TemporaryDirectory(prefix="segresmamba-report-") as downloads:
        runs = find_runs(targets, uri, Path(downloads), root)
        reference = find_baseline(baseline, runs) if baseline else None
        sections = _sections(runs, reference)
    datasets = [section.groups for section in sections]
    content = {
        "version": segresmamba.__version__,
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "title": captions.title(datasets),
        "lead": captions.lead(runs),
        "measured": captions.measured([group for groups in datasets for group in groups]),
        "sections": [section.content for section in sections],
        "number": number,
        "folder": PICTURES,
    }
    pictures = [picture for section in sections for picture in section.pictures]
    try:
        return _write(out, pictures, content, len(runs), sum(map(len, datasets)))
    except OSError as error:
        raise ReportError(
            "the report cannot be written",
            where=error.filename or out,
            got=error.strerror or error,
            remedy="free space, or give another folder with --out",
        ) from error


def _sections(runs: Sequence[MeasuredRun], baseline: MeasuredRun | None) -> list[_Section]:
    """A section for each dataset; the baseline counts in that of its own."""
    datasets = by_dataset(runs)
    if baseline and baseline.dataset not in {runs[0].dataset for runs in datasets}:
        raise ReportError(
            "no run of the report has the dataset of the baseline",
            where="--baseline",
            got=f"{baseline.history.where}, dataset {baseline.dataset_label}",
            remedy="give a run on " + " or ".join(runs[0].dataset_label for runs in datasets),
        )
    return [
        _section(
            group_runs(of_dataset),
            baseline if baseline and baseline.dataset == of_dataset[0].dataset else None,
            suffix=f"-{number}" if number > 1 else "",
        )
        for number, of_dataset in enumerate(datasets, 1)
    ]


def _section(groups: Sequence[Group], baseline: MeasuredRun | None, suffix: str) -> _Section:
    """The pictures of a dataset, and the values of the templates by name.

    Args:
        groups: The groups of the dataset.
        baseline: The run that they are compared with.
        suffix: Tells the names of its pictures and tables from those of other datasets.
    """
    palette = colours(len(groups))
    comparable = have_same_convention(run for group in groups for run in group.runs)
    front = pareto_front(groups, cost="memory_gib", gain="dice") if comparable else []
    of_baseline = (
        group
        for group in groups
        if baseline and baseline.history.id in {run.history.id for run in group.runs}
    )
    comparisons = compare(groups, next(of_baseline, None)) if comparable else []
    pictures = {
        name: _Picture(f"{name}{suffix}.png", png, _data_uri("image/png", png))
        for name, png in (
            ("tradeoff", draw_tradeoff(groups, front) if comparable else None),
            ("curves", draw_curves(groups)),
        )
        if png is not None
    }
    worst = [
        (case, _overlay(case, f"worst{suffix}-{rank}"))
        for rank, case in enumerate(worst_cases(groups), 1)
    ]
    content = {
        "suffix": suffix,
        "dataset": groups[0].runs[0].dataset_label,
        "notes": captions.notes(groups, comparisons, baseline),
        "differences": [
            f"{key} ({' / '.join(dict.fromkeys(values))})"
            for key, values in differences(groups).items()
        ],
        "networks": networks_table(groups, palette, front, baseline),
        "classes": classes_table(groups, palette),
        "significance": significance_table(comparisons),
        "all_runs": runs_table(groups, palette),
        "pictures": pictures,
        "worst": worst,
    }
    overlays = [picture for _, picture in worst if picture]
    return _Section(groups, [*pictures.values(), *overlays], content)


def _overlay(case: WorstCase, prefix: str) -> _Picture | None:
    path = case.run.picture(case.case_id)
    if path is None:
        return None
    try:
        png, jpeg = path.read_bytes(), small_jpeg(path)
    except OSError as error:
        logger.warning("the picture of a case is left out: %s", error)
        return None
    name = f"{prefix}_{case.run.history.name}_{case.case_id}.png".replace("/", "_")
    return _Picture(name, png, _data_uri("image/jpeg", jpeg))


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"


def _write(
    out: Path, pictures: Sequence[_Picture], content: dict[str, Any], runs: int, groups: int
) -> Report:
    """Write into a folder beside the report first, so that a full disk leaves the old report."""
    page, text = _render("page.html.j2", content), _render("page.md.j2", content)
    out.mkdir(parents=True, exist_ok=True)
    remove_abandoned(out, {"report"})
    new = temporary_path(out / "report")
    try:
        (new / PICTURES).mkdir(parents=True)
        for picture in pictures:
            (new / PICTURES / picture.name).write_bytes(picture.png)
        (new / PAGE).write_text(page, encoding="utf-8")
        (new / MARKDOWN).write_text(text, encoding="utf-8")
        sync_tree(new)
        shutil.rmtree(out / PICTURES, ignore_errors=True)
        # report.md shows the pictures, so they come first.
        for name in (PICTURES, MARKDOWN, PAGE):
            os.replace(new / name, out / name)
    finally:
        remove(new)
    files = [out / PICTURES / picture.name for picture in pictures]
    return Report(out / PAGE, out / MARKDOWN, files, runs, groups)


def _render(template: str, content: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(("html.j2",)),  # the name of a run is text, never markup
        undefined=StrictUndefined,  # a misspelt name is an error, not an empty text
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": markdown.text, "destination": markdown.destination}
    return environment.get_template(template).render(content)
