"""Distances between the surfaces of two masks.

The surface of a mask is those of its voxels that have a face neighbour outside it; the edge of the
volume counts as outside. MONAI's metrics and Metrics Reloaded (Maier-Hein et al., Nature Methods
2024) take the same surface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Distances = NDArray[np.float64]


@dataclass(frozen=True)
class SurfaceDistances:
    """From each voxel of a surface to the nearest of the other, in mm."""

    from_prediction_mm: Distances
    from_reference_mm: Distances

    @property
    def hd95_mm(self) -> float:
        """The larger of the two 95th percentiles."""
        both = (self.from_prediction_mm, self.from_reference_mm)
        return float(max(np.percentile(distances, 95) for distances in both))

    @property
    def mean_mm(self) -> float:
        """The mean over the voxels of both surfaces."""
        return float(np.concatenate([self.from_prediction_mm, self.from_reference_mm]).mean())

    def within(self, tolerance_mm: float) -> float:
        """The part of both surfaces that is no further than this from the other one."""
        both = np.concatenate([self.from_prediction_mm, self.from_reference_mm])
        return float(np.count_nonzero(both <= tolerance_mm)) / both.size


def surface_distances(
    prediction: Mask, reference: Mask, spacing_mm: Sequence[float]
) -> SurfaceDistances:
    """Measure the distances between the surfaces of two masks, neither of which is empty."""
    # The distances do not change in the box around both masks, and it is smaller.
    (box,) = ndimage.find_objects((prediction | reference).astype(np.uint8))
    found, expected = (
        mask & ~ndimage.binary_erosion(mask) for mask in (prediction[box], reference[box])
    )
    return SurfaceDistances(
        from_prediction_mm=_to_nearest(found, expected, spacing_mm),
        from_reference_mm=_to_nearest(expected, found, spacing_mm),
    )


def _to_nearest(places: Mask, surface: Mask, spacing_mm: Sequence[float]) -> Distances:
    """The distance from each of the places to the surface."""
    # SciPy would compute the distance of every voxel of the box, in several arrays of float64.
    nearest_DHW = ndimage.distance_transform_edt(
        ~surface, sampling=spacing_mm, return_distances=False, return_indices=True
    )
    apart = (nearest_DHW[:, places] - np.stack(np.nonzero(places))).astype(np.float64)
    distances: Distances = np.sqrt(((apart * np.reshape(spacing_mm, (-1, 1))) ** 2).sum(0))
    return distances
