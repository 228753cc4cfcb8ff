"""Commands that take trained models out of this project's runs and into them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|FOLDS", help="Run folder, or a folder of runs.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    licence: Annotated[
        str, typer.Option(help="Licence of the weights, such as CC-BY-4.0.")
    ] = "not stated",
) -> None:
    """Write trained weights as a model folder, which needs neither the run nor its dataset."""
    from segresmamba.inference.export import export_model

    typer.echo(f"model: {export_model(source, out, licence=licence)}")
