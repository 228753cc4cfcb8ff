"""Commands that take trained models out of this project's runs and into them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segresmamba.errors import ConfigError


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
        typer.Option("--to", help="onnx, pt2, bundle or nnunet: also write what others run."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="newest|STEP",
            help="Of a run: the weights of a checkpoint instead of the best ones. The pieces of "
            "its ranks are put together, without a GPU.",
        ),
    ] = None,
) -> None:
    """Write trained weights as a model folder, which needs neither the run nor its dataset."""
    from segresmamba.inference.export import (
        export_model,
        export_weights,
        refuse_used,
        scratch_beside,
    )
    from segresmamba.inference.portable import checked_form

    chosen = None if form is None else checked_form(form)
    if checkpoint is None:
        written = export_model(source, out, licence=licence, form=chosen)
    else:
        from segresmamba.engine.checkpoints.consolidate import consolidate
        from segresmamba.storage.run_folder import RunFolder

        refuse_used(out)
        with scratch_beside(out) as scratch:
            weights = scratch / "weights.safetensors"
            consolidate(RunFolder(source), weights, _step(checkpoint))
            written = export_weights(source, weights, out, licence=licence, form=chosen)
    typer.echo(f"model: {written}")


def _step(checkpoint: str) -> int | None:
    if checkpoint == "newest":
        return None
    if checkpoint.isdecimal():
        return int(checkpoint)
    raise ConfigError(
        "a checkpoint is named by its step",
        where="--checkpoint",
        got=checkpoint,
        remedy="give newest, or a step such as 1000",
    )


def import_model(
    source: Annotated[
        Path,
        typer.Argument(
            help="Result folder of nnU-Net v2 (plans.json, fold_0), MONAI bundle "
            "(configs/metadata.json); or, with settings, a file of weights."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="For a file of weights: the network and a store with its channels and labels, "
            "such as model=segresnet data=custom data.store=my.zarr."
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    licence: Annotated[
        str, typer.Option(help="Licence of the weights, such as CC-BY-4.0.")
    ] = "not stated",
    checkpoint: Annotated[
        str, typer.Option(help="Which weights of each fold of nnU-Net.")
    ] = "checkpoint_final.pth",
) -> None:
    """Turn a model that others trained into a model folder, which computes the same."""
    if overrides:
        from segresmamba.config import load_config
        from segresmamba.inference.import_weights import import_weights

        written = import_weights(source, out, load_config(overrides), licence=licence)
    elif (source / "configs").is_dir():
        from segresmamba.inference.import_bundle import import_bundle

        written = import_bundle(source, out, licence=licence)
    else:
        from segresmamba.inference.import_nnunet import import_nnunet

        written = import_nnunet(source, out, licence=licence, checkpoint=checkpoint)
    typer.echo(f"model: {written}")
