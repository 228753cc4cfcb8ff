"""Dice and the 95th percentile Hausdorff distance (HD95) of whole label volumes.

These two are what training validates by; `measures` has all metrics that an evaluation offers.
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
from numpy.typing import ArrayLike

from segresmamba.evaluation.mask_pairs import ClassPairs, MaskPair
from segresmamba.evaluation.surfaces import Mask


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
    pairs = ClassPairs(prediction, reference, spacing_mm)
    scores = {}
    for name, values in members.items():
        pair = pairs[values]
        scores[name] = Score(
            dice=dice(pair.prediction, pair.reference),
            hd95_mm=hd95_of(pair),
            reference_ml=pair.voxel_ml * pair.reference_voxels,
            prediction_ml=pair.voxel_ml * pair.predicted_voxels,
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
    diagonal_mm = float(np.linalg.norm(np.multiply(prediction.shape, spacing_mm)))
    return hd95_of(MaskPair(prediction, reference, spacing_mm, diagonal_mm))


def hd95_of(pair: MaskPair) -> float:
    """`hd95_mm` of two masks that are cut out of their volumes."""
    if pair.surfaces is None:
        return pair.diagonal_mm if pair.predicted_voxels or pair.reference_voxels else 0.0
    return pair.surfaces.hd95_mm
