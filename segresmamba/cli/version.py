"""The option --version of both programs."""

from __future__ import annotations

from typing import Annotated

import typer

from segresmamba import __version__


def _show(is_asked: bool) -> None:
    if is_asked:
        typer.echo(__version__)
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_show, is_eager=True, help="Show the version and exit."),
]
