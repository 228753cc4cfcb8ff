"""A volume to its labels, on the network's grid and on that of the files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segresmamba.data.volumes.resampling import GridTransform, nonzero_box
from segresmamba.errors import DataError
from segresmamba.inference.sliding_window import Brick, Progress, SlidingWindow, evaluating
from segresmamba.inference.way_back import Labels, ProbabilityPlanes, Slabs, WayBack
from segresmamba.task.classes import Classes


@dataclass(frozen=True)
class Segmentation:
    """The labels of a volume."""

    label_DHW: Labels
    """On the network's grid."""
    full_DHW: Labels
    """On the files' RAS grid; the same array where the two grids are one."""


def segment_volume(
    sliding: SlidingWindow,
    classes: Classes,
    image_CDHW: npt.NDArray[np.generic],
    normalisation_C4: npt.NDArray[np.floating],
    *,
    transform: GridTransform | None = None,
    probabilities: ProbabilityPlanes | None = None,
    progress: Progress = lambda done, total: None,
    interpolate_logits: bool = False,
) -> Segmentation:
    """Segment a volume.

    Only the box around the voxels that are not zero in some channel is computed. What lies outside
    it was not measured, and is background. In a CT, where air is not zero, the box is everything.

    Args:
        sliding: The networks.
        classes: What their outputs mean.
        image_CDHW: Intensities as stored, on the network's grid.
        normalisation_C4: Low, high, mean and deviation of each channel, for `data.normalise`.
        transform: How this grid lies in the files' grid; None if it is the same.
        probabilities: What takes the probabilities on the files' grid, plane by plane.
        progress: What is told of each batch of windows.
        interpolate_logits: Whether logits are brought to the files' grid, as nnU-Net does, and not
            probabilities.
    """
    shape_DHW = image_CDHW.shape[1:]
    dtype = np.uint8 if max(classes.values) < 256 else np.int16
    label_DHW: Labels = np.zeros(shape_DHW, dtype)
    full_DHW: Labels = np.zeros(transform.full_DHW, dtype) if transform else label_DHW
    box = nonzero_box(list(image_CDHW))
    if box[0][1] == 0:
        return Segmentation(label_DHW, full_DHW)
    must_interpolate = probabilities is not None or bool(transform and transform.resamples)
    back = WayBack(
        transform,
        shape_DHW,
        box,
        classes,
        full_DHW,
        probabilities,
        logits=interpolate_logits,
    )
    slabs = Slabs(box, (lambda logits: logits) if interpolate_logits else classes.probabilities)
    rows, columns = (slice(*span) for span in box[1:])
    with evaluating(*sliding.networks):
        for brick in sliding.bricks(image_CDHW, normalisation_C4, box, progress):
            _require_finite(brick)
            values = brick.computed(classes.decode).cpu().numpy()
            label_DHW[tuple(slice(*span) for span in brick.box)] = values
            if must_interpolate:
                for layer, slab_KDHW in slabs.add(brick):
                    labels = label_DHW[slice(*layer), rows, columns]
                    back.add(layer[0] - box[0][0], slab_KDHW, labels)
    if transform and not must_interpolate:
        full_DHW = transform.undo(label_DHW)
    return Segmentation(label_DHW, full_DHW)


def _require_finite(brick: Brick) -> None:
    """Refuse an output that no label follows from, most often an overflow of fp16."""
    if not brick.logits_KDHW.sum().isfinite() and not brick.logits_KDHW.isfinite().all():
        raise DataError(
            "the network's output is not finite",
            where="slices, rows, columns " + ", ".join(f"{a} to {b - 1}" for a, b in brick.box),
            got="nan or inf among the logits",
            remedy="compute in fp32 (predict --precision fp32, train.precision=fp32); look at the "
            "intensities of the image; if a training says this, try a lower train.lr",
        )
