"""`segresmamba select`: the best of several trained candidates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from segresmamba.cli.conversion import counting

console = Console(soft_wrap=True)


def select(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders, folders of runs, or sweeps.", metavar="RUN..."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path(
        "selection"
    ),
    ensembles: Annotated[
        bool, typer.Option(help="Also try the ensembles of two candidates.")
    ] = True,
    licence: Annotated[
        str, typer.Option(help="Licence of the weights, such as CC-BY-4.0.")
    ] = "not stated",
    workers: Annotated[int, typer.Option(min=1, help="Cores that score.")] = 2,
) -> None:
    """Compare networks, and ensembles of two, on the cases that they held out.

    The best is written as one model folder, which predict takes.
    """
    from segresmamba.evaluation.selection import select as choose
    from segresmamba.evaluation.selection_files import (
        refuse_used_folder,
        selection_table,
        write_selection,
    )

    refuse_used_folder(out)
    stack = ExitStack()

    def progress(what: str) -> Callable[[int, int], None]:
        stack.close()  # a terminal has one bar at a time
        return stack.enter_context(counting(what, console))

    with stack:
        selection = choose(runs, ensembles=ensembles, workers=workers, progress=progress)
    console.print(selection_table(selection))
    typer.echo(selection.reason)
    for reason in selection.decision.reasons:
        typer.echo(f"post-processing: {reason}")
    for path in write_selection(out, selection, licence):
        typer.echo(f"written: {path}")
