"""Scores of lesions: connected components of a class, each of which counts the same.

Two conventions. Both connect voxels that touch by a face, an edge or a corner.

- BraTS 2023 (github.com/rachitsaluja/BraTS-2023-Metrics): the reference is dilated, and what then
  is connected counts as one lesion. A predicted component finds every lesion whose dilation it
  touches, and a lesion is compared with all components that find it. Lesions up to a smallest size
  are left out; a component that finds no lesion is a false positive of score 0.
- panoptica (Kofler et al., arXiv:2312.02608): components are the instances. A pair whose
  intersection over union exceeds 0.5 matches; no instance can have two such partners.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segresmamba.evaluation.mask_pairs import MaskPair
from segresmamba.evaluation.surfaces import surface_distances

_TOUCHING = np.ones((3, 3, 3))
_DILATION = ndimage.generate_binary_structure(3, 2)  # faces and edges, as BraTS dilates
_MATCHING_IOU = 0.5

Components = NDArray[Any]


class Lesions:
    """The lesions of a class by the convention of BraTS 2023.

    Args:
        pair: The masks. Around them there is a margin of the dilation, if the volume has it.
        dilation_voxels: How often the reference is dilated.
        minimum_mm3: Lesions of this volume and below are left out.
    """

    def __init__(self, pair: MaskPair, dilation_voxels: int, minimum_mm3: float) -> None:
        self._pair = pair
        dilated = pair.reference
        if dilation_voxels:
            dilated = ndimage.binary_dilation(dilated, _DILATION, iterations=dilation_voxels)
        self._places, lesions = ndimage.label(dilated, _TOUCHING)
        self._predicted, components = ndimage.label(pair.prediction, _TOUCHING)
        self._touches = _overlaps(self._places, self._predicted)
        reference = _sizes(self._places[pair.reference], lesions)
        common = _sizes(self._places[pair.reference & pair.prediction], lesions)
        sizes = _sizes(self._predicted[pair.prediction], components)
        prediction = np.zeros_like(reference)
        np.add.at(prediction, self._touches.first, sizes[self._touches.second])
        counted = reference * pair.voxel_ml * 1000 > minimum_mm3
        self._dice = 2 * common[counted] / (reference + prediction)[counted]
        self._numbers = np.flatnonzero(counted)
        self._is_found = prediction[counted] > 0
        self.false_positives = int(components) - len(np.unique(self._touches.second))

    @property
    def _total(self) -> int:
        return len(self._numbers) + self.false_positives

    @property
    def f1(self) -> float:
        """2 found / (2 found + missed + false positives); nan without any."""
        found = int(self._is_found.sum())
        return 2 * found / (found + self._total) if self._total else math.nan

    @property
    def dice(self) -> float:
        """Dice, the mean over the lesions and the false positives; nan without any."""
        return float(self._dice.sum()) / self._total if self._total else math.nan

    @cached_property
    def hd95_mm(self) -> float:
        """The same mean of HD95; what has no counterpart counts as the diagonal of the volume."""
        if not self._total:
            return math.nan
        lesion_boxes = ndimage.find_objects(self._places)
        component_boxes = ndimage.find_objects(self._predicted)
        alone = self.false_positives + int((~self._is_found).sum())
        distances_mm: list[float] = [alone * self._pair.diagonal_mm]
        for number in self._numbers[self._is_found]:
            components = self._touches.second[self._touches.first == number]
            boxes = [lesion_boxes[number], *(component_boxes[one] for one in components)]
            box = tuple(
                slice(min(side.start for side in sides), max(side.stop for side in sides))
                for sides in zip(*boxes, strict=True)
            )
            lesion = self._pair.reference[box] & (self._places[box] == number + 1)
            prediction = np.isin(self._predicted[box], components + 1)
            distances_mm.append(
                surface_distances(prediction, lesion, self._pair.spacing_mm).hd95_mm
            )
        return sum(distances_mm) / self._total


@dataclass(frozen=True)
class Instances:
    """Panoptic quality of the connected components of a class (Kirillov et al., CVPR 2019)."""

    matched_iou: NDArray[np.float64]
    """Intersection over union of each matched pair."""
    unmatched: int
    """Components of either volume without a partner."""

    @classmethod
    def from_pair(cls, pair: MaskPair) -> Instances:
        """Match the components of both masks."""
        (expected, expected_count), (found, found_count) = (
            ndimage.label(mask, _TOUCHING) for mask in (pair.reference, pair.prediction)
        )
        overlaps = _overlaps(expected, found)
        union = (
            _sizes(expected[pair.reference], expected_count)[overlaps.first]
            + _sizes(found[pair.prediction], found_count)[overlaps.second]
            - overlaps.voxels
        )
        iou = overlaps.voxels / union
        matched = iou[iou > _MATCHING_IOU]
        return cls(matched, expected_count + found_count - 2 * len(matched))

    @property
    def recognition(self) -> float:
        """F1 of the instances; nan without any."""
        total = 2 * len(self.matched_iou) + self.unmatched
        return 2 * len(self.matched_iou) / total if total else math.nan

    @property
    def segmentation(self) -> float:
        """Mean intersection over union of the matched pairs, 0 if none matches; nan without any."""
        if not len(self.matched_iou):
            return 0.0 if self.unmatched else math.nan
        return float(self.matched_iou.mean())


@dataclass(frozen=True)
class _Overlaps:
    """Pairs of components, counted from 0, that have voxels in common."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    voxels: NDArray[np.intp]


def _overlaps(first: Components, second: Components) -> _Overlaps:
    both = (first > 0) & (second > 0)
    width = int(second.max(initial=0)) + 1
    codes, voxels = np.unique(
        first[both].astype(np.int64) * width + second[both], return_counts=True
    )
    return _Overlaps(codes // width - 1, codes % width - 1, voxels)


def _sizes(numbers: Components, count: int) -> NDArray[np.intp]:
    """How often each component occurs, without the background."""
    return np.bincount(numbers, minlength=count + 1)[1:]
