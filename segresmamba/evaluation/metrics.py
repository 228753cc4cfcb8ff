"""Dice and the 95th percentile Hausdorff distance (HD95) of whole label volumes.

Conventions, those of the BraTS challenge:

- HD95 is the larger of the two directed 95th percentiles, in mm, between surface voxels (voxels of
  the class with a face neighbour outside it; the edge of the volume counts as outside).
- A class that is in neither volume counts as found: Dice 1, HD95 0 mm.
- A class that is in only one volume counts as wrong: Dice 0, and HD95 the diagonal of the volume in
  mm (373.1 mm for BraTS), the largest distance there is. A NaN would leave such cases out of the
  mean, which rewards a network for missing a structure. Their score has a volume of 0 ml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Score:
    """How well one class of one case was found."""

    dice: float
    """Dice coefficient, 0 to 1."""
    hd95_mm: float
    """95th percentile Hausdorff distance."""
    reference_ml: float
    """Volume of the class in the reference."""
    prediction_ml: float
    """Volume of the class in the prediction."""

    @property
    def one_sided(self) -> bool:
        """Whether the class is missing from one of the two volumes, so that HD95 is a penalty."""
        return (self.reference_ml == 0) != (self.prediction_ml == 0)


def score(
    prediction: ArrayLike,
    reference: ArrayLike,
    members: Mapping[str, Sequence[int]],
    spacing_mm: Sequence[float],
) -> dict[str, Score]:
    """Compare two label volumes, class by class.

    Args:
        prediction: Label values on any three axes; an array or a CPU tensor.
        reference: Label values of the same shape.
        members: Label values that make up each class; classes may overlap.
        spacing_mm: Size of a voxel along each axis of the volumes.

    Raises:
        ValueError: If the shapes differ or are not three-dimensional.
    """
    found, expected = np.asarray(prediction), np.asarray(reference)
    if found.shape != expected.shape or found.ndim != 3:
        raise ValueError(f"cannot compare volumes of shapes {found.shape} and {expected.shape}")
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    scores = {}
    for name, values in members.items():
        found_mask, expected_mask = np.isin(found, values), np.isin(expected, values)
        scores[name] = Score(
            dice=dice(found_mask, expected_mask),
            hd95_mm=hd95_mm(found_mask, expected_mask, spacing_mm),
            reference_ml=voxel_ml * int(np.count_nonzero(expected_mask)),
            prediction_ml=voxel_ml * int(np.count_nonzero(found_mask)),
        )
    return scores


def dice(prediction: Mask, reference: Mask) -> float:
    """Dice coefficient of two masks; 1 if both are empty."""
    total = int(np.count_nonzero(prediction) + np.count_nonzero(reference))
    return 2 * int(np.count_nonzero(prediction & reference)) / total if total else 1.0


def hd95_mm(prediction: Mask, reference: Mask, spacing_mm: Sequence[float]) -> float:
    """95th percentile Hausdorff distance of two masks, symmetric.

    Args:
        prediction: A mask.
        reference: A mask of the same shape.
        spacing_mm: Size of a voxel along each axis.

    Returns:
        Millimetres; 0 if both masks are empty, the diagonal of the volume if one is.
    """
    if not (prediction.any() and reference.any()):
        missed = bool(prediction.any() or reference.any())
        return float(np.linalg.norm(np.multiply(prediction.shape, spacing_mm))) if missed else 0.0
    # The distances between the surfaces do not change in the box around both, and it is smaller.
    (box,) = ndimage.find_objects((prediction | reference).astype(np.uint8))
    surfaces: list[Mask] = [
        mask & ~ndimage.binary_erosion(mask) for mask in (prediction[box], reference[box])
    ]
    to_prediction, to_reference = (
        ndimage.distance_transform_edt(~surface, sampling=spacing_mm) for surface in surfaces
    )
    directed = to_reference[surfaces[0]], to_prediction[surfaces[1]]
    return float(max(np.percentile(distances, 95) for distances in directed))
