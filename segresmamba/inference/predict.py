"""Segment new images with a trained run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segresmamba.inference.label_map import writer_for
from segresmamba.inference.model import SegmentationModel
from segresmamba.inference.options import InferenceOptions
from segresmamba.inference.trained import open_models


def predict(
    run: Path, images: Sequence[Path], out: Path, options: InferenceOptions | None = None
) -> None:
    """Segment one case. The run's dataset need not be there.

    Args:
        run: A trained model, see `open_models`.
        images: A file for each channel, in the dataset's order.
        out: Label file to write, in the geometry of the first image.
        options: How the model is applied.

    Raises:
        UserError: If there is no trained model, an image cannot be used, or `out` not written.
    """
    # A wrong name or folder is found now, not when the network has run for minutes.
    writer_for(out)
    model = SegmentationModel(open_models(run), options)
    model.segment(list(images)).save(out)
