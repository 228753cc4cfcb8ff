"""`segresmamba serve`: a model over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from segresmamba.cli.predict import Device, NoPostprocessing, Overlap, Precision, Tta

TOKEN = "SEGRESMAMBA_SERVE_TOKEN"


def serve(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...",
            help="A run, a folder of runs or of a sweep, or a model folder; several are averaged.",
        ),
    ],
    host: Annotated[
        str,
        typer.Option(
            help=f"Address to listen at. Others than this machine's own need a token in {TOKEN}."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    max_gib: Annotated[
        float, typer.Option(min=0.001, help="Largest request, and largest case in memory.")
    ] = 4.0,
    tta: Tta = False,
    overlap: Overlap = None,
    device: Device = "auto",
    precision: Precision = None,
    no_postprocessing: NoPostprocessing = False,
) -> None:
    """Segment what clients send over HTTP: a NIfTI file for each channel, a label map back."""
    from segresmamba.inference.model import SegmentationModel
    from segresmamba.inference.options import InferenceOptions
    from segresmamba.inference.server import ModelServer
    from segresmamba.inference.server_access import ServerOptions
    from segresmamba.inference.trained import open_models

    limits = ServerOptions(host, port, int(max_gib * (1 << 30)), os.environ.get(TOKEN) or None)
    options = InferenceOptions(device, precision, tta, overlap, not no_postprocessing)
    trained = [one for model in models for one in open_models(model)]
    server = ModelServer(SegmentationModel(trained, options), limits)
    typer.echo(f"channels: {', '.join(trained[0].facts.channel_names)}")
    typer.echo(f"address:  {server.url}  (Ctrl-C ends it)")
    try:
        server.run()
    except KeyboardInterrupt:
        typer.echo("ended")
