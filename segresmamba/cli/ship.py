"""Commands that take trained models out of this project's runs and into them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FOLDS", help="Run folder, or a folder of runs; with --to a model folder."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    licence: Annotated[
        str, typer.Option(help="Licence of the weights, such as CC-BY-4.0.")
    ] = "not stated",
    form: Annotated[
        str | None,
        typer.Option("--to", help="onnx, pt2 or bundle: also write what other programs run."),
    ] = None,
) -> None:
    """Write trained weights as a model folder, which needs neither the run nor its dataset."""
    from segresmamba.inference.export import export_model
    from segresmamba.inference.portable import checked_form

    chosen = None if form is None else checked_form(form)
    written = export_model(source, out, licence=licence, form=chosen)
    typer.echo(f"model: {written}")


def import_model(
    source: Annotated[
        Path, typer.Argument(help="Result folder of nnU-Net v2, with plans.json and fold_0.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    licence: Annotated[
        str, typer.Option(help="Licence of the weights, such as CC-BY-4.0.")
    ] = "not stated",
    checkpoint: Annotated[
        str, typer.Option(help="Which weights of each fold.")
    ] = "checkpoint_final.pth",
) -> None:
    """Turn a model that nnU-Net trained into a model folder, which computes the same labels."""
    from segresmamba.inference.import_nnunet import import_nnunet

    written = import_nnunet(source, out, licence=licence, checkpoint=checkpoint)
    typer.echo(f"model: {written}")
