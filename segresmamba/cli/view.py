"""`segresmamba view`: look at cases in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segresmamba.errors import ConfigError


def view(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN | STORE | IMAGE...",
            help="A run's folder (its held-out cases, the worst first), a converted dataset, or "
            "the image of one case; several files are its channels.",
        ),
    ] = None,
    label: Annotated[
        Path | None, typer.Option(help="With image files: the prediction, a label map.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="With image files: the reference, a label map.")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="With a run or a store: folder that `predict` wrote. Without it a run's "
            "predictions are computed when you open a case."
        ),
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="With a run: its dataset, if it lies elsewhere here.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    install_niivue: Annotated[
        str | None,
        typer.Option(
            metavar="npm | ARCHIVE",
            help="Only install what draws the volumes: with npm, or from the package's .tgz.",
        ),
    ] = None,
) -> None:
    """Show image, prediction, reference and errors in a browser of this machine; offline."""
    from segresmamba.view.niivue import install

    if install_niivue is not None:
        typer.echo(f"installed: {install(install_niivue)}")
        return
    if not targets:
        raise ConfigError(
            "there is nothing to show",
            where="segresmamba view",
            got="no run, store or image",
            remedy="name one, as in `segresmamba view runs/first`",
        )
    from segresmamba.view.cases import ViewRequest
    from segresmamba.view.server import ViewServer

    shown = ViewRequest(targets, label, reference, predictions, store).open()
    with ViewServer(shown, port) as server:
        typer.echo(f"cases: {len(shown.cases)}")
        typer.echo(f"page:  {server.url}  (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("ended")
