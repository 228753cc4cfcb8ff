"""Options and progress display that `segresmamba` and `python -m launch` share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

FormatName = Annotated[
    str,
    typer.Option(
        "--format",
        help="Format of the dataset: auto, nnunet, decathlon, monai, brats2021, brats2023, bids or "
        "dicom.",
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

_LINES = 20  # the most that a log gets, after the line at the start


@contextmanager
def counting(what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show progress: a bar on a terminal, elsewhere a line for each twentieth.

    Yields:
        A function to call with the number of finished cases and that of all cases.
    """
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    printed = -1

    def print_line(done: int, total: int) -> None:
        nonlocal printed
        twentieths = _LINES * done // max(total, 1)
        if twentieths > printed:
            printed = twentieths
            console.print(f"{what}: {done} of {total} cases", highlight=False)

    yield print_line
