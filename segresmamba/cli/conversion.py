"""Options and progress display that `segresmamba` and `python -m launch` share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

FormatName = Annotated[
    str,
    typer.Option(
        "--format",
        help="Format of the dataset: auto, nnunet, decathlon, monai, brats2021, brats2023, bids, "
        "dicom, or one of another package by its entry point or as package.module:NAME.",
    ),
]
ResampleMismatched = Annotated[
    bool,
    typer.Option(
        "--resample-mismatched", help="Resample images of a case that do not share one grid."
    ),
]
SpacingPolicy = Annotated[
    str,
    typer.Option(
        "--spacing",
        help="Voxel size: keep, median (of all cases), or mm along D,H,W as in 3,1,1.",
    ),
]
CropPolicy = Annotated[
    bool, typer.Option("--crop", help="Cut each case to the box around its non-zero voxels.")
]
IntensityPolicy = Annotated[
    str,
    typer.Option(
        "--intensity",
        help="How the network sees intensities: zscore (over the non-zero voxels of the case), "
        "zscore-whole (over all its voxels), ct (clipped and scaled by the foreground of all "
        "cases), ct-clipped (the same, stored in fewer bytes), rescale01 (0 to 1 over the range of "
        "the case), rgb (divided by 255) or stored (unchanged). auto reads the names of channels "
        "as nnU-Net does. One for each channel: ct,zscore.",
    ),
]
DtypePolicy = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="Type of the stored images: auto, float32, float16, or int16 (scaled if need be).",
    ),
]
Splits = Annotated[
    Path | None,
    typer.Option(help='JSON file with your own folds: [{"train": [...], "val": [...]}, ...].'),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Convert all cases again, finished ones too.")
]

ConfigDir = Annotated[
    Path | None,
    typer.Option(
        "--config-dir",
        metavar="DIR",
        help="Folder with presets of your own, such as DIR/data/mine.yaml. Default: configs/ here.",
    ),
]

TIMED_COLUMNS = (
    TextColumn("{task.description}", markup=False),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
)
"""The columns of a bar with the time that has passed and the time that is left."""

_LINES = 20  # the most that a log gets, after the line at the start


@contextmanager
def counting(
    what: str, console: Console, things: str = "cases"
) -> Iterator[Callable[[int, int], None]]:
    """Show progress and the time left: a bar on a terminal, elsewhere a line for each twentieth.

    Yields:
        A function to call with the number of finished things and that of all things.
    """
    if console.is_terminal:
        with Progress(*TIMED_COLUMNS, console=console) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    printed, started_s = -1, time.monotonic()

    def print_line(done: int, total: int) -> None:
        nonlocal printed
        twentieths = _LINES * done // max(total, 1)
        if twentieths > printed:
            printed = twentieths
            left = ""
            if 0 < done < total:
                left_s = (time.monotonic() - started_s) / done * (total - done)
                left = f", {timedelta(seconds=round(left_s))} left"
            console.print(
                f"{what}: {done} of {total} {things}{left}", highlight=False, markup=False
            )

    yield print_line
