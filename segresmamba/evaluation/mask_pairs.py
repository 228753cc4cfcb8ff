"""The two masks of a class, cut to the box around both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segresmamba.evaluation.surfaces import Mask, SurfaceDistances, surface_distances

Labels = NDArray[Any]
Box = tuple[slice, ...]


@dataclass(frozen=True)
class MaskPair:
    """A class in the prediction and in the reference; at least the box around both is there."""

    prediction: Mask
    reference: Mask
    spacing_mm: Sequence[float]
    """Size of a voxel along each axis."""
    diagonal_mm: float
    """The largest distance in the whole volume."""

    @cached_property
    def predicted_voxels(self) -> int:
        """Voxels of the prediction."""
        return int(np.count_nonzero(self.prediction))

    @cached_property
    def reference_voxels(self) -> int:
        """Voxels of the reference."""
        return int(np.count_nonzero(self.reference))

    @cached_property
    def common_voxels(self) -> int:
        """Voxels that are in both."""
        return int(np.count_nonzero(self.prediction & self.reference))

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return float(prod(self.spacing_mm)) / 1000

    @cached_property
    def surfaces(self) -> SurfaceDistances | None:
        """Distances between the surfaces; None if one of the masks is empty."""
        if not (self.predicted_voxels and self.reference_voxels):
            return None
        return surface_distances(self.prediction, self.reference, self.spacing_mm)


class ClassPairs:
    """Cuts the classes out of two label maps, each when it is asked for.

    Args:
        prediction: Label values on any three axes; an array or a CPU tensor.
        reference: Label values of the same shape.
        spacing_mm: Size of a voxel along each axis.
        margin_voxels: What stays around the box of a class, where the volume has room for it.

    Raises:
        ValueError: If the shapes differ or are not three-dimensional.
    """

    def __init__(
        self, prediction: Any, reference: Any, spacing_mm: Sequence[float], margin_voxels: int = 0
    ) -> None:
        self._maps = _integers(prediction), _integers(reference)
        found, expected = (volume.shape for volume in self._maps)
        if found != expected or len(found) != 3:
            raise ValueError(f"cannot compare volumes of shapes {found} and {expected}")
        self._spacing_mm = spacing_mm
        self._diagonal_mm = float(np.linalg.norm(np.multiply(found, spacing_mm)))
        self._margin = margin_voxels
        # One pass over a volume finds the boxes of all its values.
        self._boxes = [dict(enumerate(ndimage.find_objects(one), start=1)) for one in self._maps]

    def __getitem__(self, values: Sequence[int]) -> MaskPair:
        """The masks of a class that has these label values."""
        boxes = [box for found in self._boxes for value in values if (box := found.get(value))]
        around = tuple(
            slice(
                max(min(side.start for side in sides) - self._margin, 0),
                max(side.stop for side in sides) + self._margin,
            )
            for sides in zip(*boxes, strict=True)
        )
        box = around or (slice(0),) * 3
        found, expected = (np.isin(volume[box], values) for volume in self._maps)
        return MaskPair(found, expected, self._spacing_mm, self._diagonal_mm)


def _integers(label: Any) -> Labels:
    """Label values as integers: a label's file may have floating ones."""
    array = np.asarray(label)
    return array if array.dtype.kind in "iu" else array.astype(np.int32)
