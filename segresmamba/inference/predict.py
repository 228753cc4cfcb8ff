"""Segment new images with a trained run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from segresmamba.config import read_config
from segresmamba.errors import DataError
from segresmamba.inference.model import ServedNetwork
from segresmamba.storage.run_folder import RunFolder

logger = logging.getLogger(__name__)


def predict(run: Path, images: Sequence[Path], out: Path) -> None:
    """Segment one case with a run's best weights; the run's dataset is not needed.

    Args:
        run: The run's folder.
        images: A NIfTI file for each channel, in the dataset's order.
        out: Label file to write, in the geometry of the first image.

    Raises:
        UserError: If the run is not trained, an image cannot be used, or `out` not written.
    """
    _check_output(out)
    folder = RunFolder(run)
    config = read_config(folder.config)
    label = ServedNetwork(folder.best, config).segment_files(images)
    part = out.with_name(f".part-{out.name}")
    try:
        label.to_filename(part)
        part.replace(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        part.unlink(missing_ok=True)


def _check_output(out: Path) -> None:
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


def cannot_write(path: Path, error: OSError) -> DataError:
    """The error of a result that the disk or its folder does not take."""
    return DataError(
        "the result cannot be written",
        where=error.filename or path,
        got=error.strerror,
        remedy="free space, or choose a folder that you can write to",
    )
