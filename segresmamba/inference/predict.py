"""Segment new images with a trained run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segresmamba.config import read_config
from segresmamba.errors import DataError
from segresmamba.inference.model import ServedNetwork
from segresmamba.storage.atomic import atomic_path
from segresmamba.storage.run_folder import RunFolder


def predict(run: Path, images: Sequence[Path], out: Path) -> None:
    """Segment one case with a run's best weights. The run's dataset need not be there.

    Args:
        run: The run's folder.
        images: A NIfTI file for each channel, in the dataset's order.
        out: Label file to write, in the geometry of the first image.

    Raises:
        UserError: If the run is not trained, an image cannot be used, or `out` not written.
    """
    # A wrong name or folder is found now, not when the network has run for minutes.
    if not out.name.endswith((".nii", ".nii.gz")):
        raise DataError(
            "labels are written as NIfTI",
            where="--out",
            got=out.name,
            remedy=f"write --out {out.with_suffix('')}.nii.gz",
        )
    if not out.parent.is_dir():
        raise DataError(
            "the folder of the label file does not exist",
            where="--out",
            got=out.parent,
            remedy=f"mkdir -p {out.parent}",
        )
    folder = RunFolder(run)
    label = ServedNetwork(folder.best, read_config(folder.config)).segment_files(images)
    try:
        with atomic_path(out) as temporary:
            label.to_filename(temporary)
    except OSError as error:
        raise cannot_write(out, error) from error


def cannot_write(path: Path, error: OSError) -> DataError:
    """The error to raise when the result cannot be written to disk."""
    return DataError(
        "the result cannot be written",
        where=error.filename or path,
        got=error.strerror,
        remedy="free space, or choose a folder that you can write to",
    )
