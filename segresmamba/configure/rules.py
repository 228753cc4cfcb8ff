"""How single settings follow from a dataset, as pure functions.

docs/configure.md gives the reasons. Sizes and spacings are along (D, H, W), in voxels and mm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from segresmamba.planner.plan import GIB
from segresmamba.planner.states import states

Size = tuple[int, int, int]
Array = npt.NDArray[np.float64]

AXES = "DHW"
# From here on nnU-Net treats an axis as anisotropic.
_ANISOTROPY = 3.0
_SAME_SPACING = 1.1
"""Ratio up to which two voxel sizes count as alike."""
_PADDING = 0.15
"""How much longer than a case a patch may be, as a share of the case."""
_SMALLEST_MAP = 4
"""Voxels along a side of the deepest feature map, as in nnU-Net."""
VOXELS_PER_S = 6e6
"""What one GPU trains on per second. This is an assumption: nothing here was measured on a GPU. It
follows from the paper's epoch of BraTS on an A100, see docs/configure.md."""
PASSES = 200
STEPS = (20_000, 250_000)
"""Fewest and most steps without a limit of time: those of configs/train and those of nnU-Net."""
_SIDES = re.compile(r"(?<![a-z])(left|right)(?![a-z])", re.IGNORECASE)
_LETTERS = re.compile(r"(?<![a-z])[lr]h?(?![a-z])", re.IGNORECASE)


def target_spacing(spacing_N3: Array, shape_N3: Array) -> Array:
    """The voxel size that suits all cases: the median, and nnU-Net's rule for thick slices.

    If one axis has voxels over three times as long as the others, and a third of their number or
    less, its size is the tenth percentile: the median would blur the cases with thin slices.
    """
    target_3: Array = np.median(spacing_N3, axis=0)
    shape_3 = np.median(shape_N3 * spacing_N3 / target_3, axis=0)
    worst = int(target_3.argmax())
    others = [axis for axis in range(3) if axis != worst]
    longest = target_3[others].max()
    if target_3[worst] > _ANISOTROPY * longest and shape_3[worst] * _ANISOTROPY < min(
        shape_3[others]
    ):
        target_3[worst] = max(np.percentile(spacing_N3[:, worst], 10), longest)
    return target_3


def share_off_target(spacing_N3: Array, target_3: Array) -> float:
    """Share of the cases that have voxels of another size than the target, by over a tenth."""
    off_N3 = np.abs(np.log(spacing_N3 / target_3)) > math.log(_SAME_SPACING)
    return float(off_N3.any(axis=1).mean())


def looks_like_ct(least_N: Array) -> bool:
    """Whether a channel holds Hounsfield units, from the least intensity of each case: air."""
    return bool(np.median(least_N) < -500)


def stages_for(shape_3: Array, most: int) -> int:
    """Stages of a SegResMamba network for cases of this size.

    Each stage halves the resolution. The deepest map keeps four voxels along the mean side.
    """
    return max(2, min(most, int(math.log2(max(mean_side(shape_3) / _SMALLEST_MAP, 1))) - 1))


def mean_side(shape_3: Array) -> float:
    """Side of a cube with as many voxels."""
    return math.cbrt(math.prod(shape_3))


def whole_case(shape_3: Array, multiple: int) -> Size:
    """The patch that holds a case of this size: each side is a multiple of the network's stride.

    The longest side of a tiny case is two multiples, although that is mostly padding: with one, the
    deepest map would be a single voxel, which no network here can be trained with.
    """
    sides = [
        math.ceil(side / multiple) * multiple
        if -side % multiple <= _PADDING * side
        else max(multiple, side // multiple * multiple)
        for side in shape_3
    ]
    if max(sides) == multiple:
        sides[int(np.argmax(shape_3))] = 2 * multiple
    return _size(sides)


def proportional_patch(shape_3: Array, voxels: float, multiple: int) -> Size:
    """The largest patch of at most so many voxels that has the proportions of a case.

    Args:
        shape_3: Size of the case; the patch is not larger, apart from rounding.
        voxels: The most voxels.
        multiple: Each side is a multiple of it, and at least once or, on the longest side, twice.
    """
    largest = whole_case(shape_3, multiple)
    sides = [multiple] * 3
    while True:
        growing = [axis for axis in range(3) if sides[axis] < largest[axis]]
        if not growing:
            return _size(sides)
        axis = min(growing, key=lambda axis: sides[axis] / shape_3[axis])
        grown = [side + multiple * (one == axis) for one, side in enumerate(sides)]
        if math.prod(grown) > voxels and max(sides) > multiple:
            return _size(sides)
        sides = grown


def zero_stage_for(weights_bytes: int, ranks: int, memory_gib: float) -> int:
    """The lowest ZeRO stage that a higher one does not beat by a tenth of the GPU's memory.

    Stage 3 is left out: it gathers the weights again in each step, and networks here are small.
    """
    needed = {
        stage: max(held.in_backward, held.in_step) / GIB
        for stage in (0, 1, 2)
        if (held := states(stage, weights_bytes, ranks))
    }
    return next(one for one in needed if needed[one] - min(needed.values()) <= memory_gib / 10)


def steps_for(
    crops: float, batch: int, voxels_per_rank: float, budget_h: float
) -> tuple[int, float]:
    """Optimizer steps, and the hours that they are expected to take.

    Args:
        crops: Crops of one pass over all voxels of the training cases.
        batch: Crops in a step.
        voxels_per_rank: Voxels that one GPU computes in a step.
        budget_h: Hours that the run may take.
    """
    step_h = voxels_per_rank / VOXELS_PER_S / 3600
    wanted = min(max(PASSES * crops / batch, STEPS[0]), STEPS[1])
    steps = max(10, int(min(wanted, budget_h / step_h)))
    rounded = steps // 100 * 100 or steps
    return rounded, rounded * step_h


def flip_axes(labels: Iterable[str]) -> tuple[str, ...]:
    """Axes along which a crop may be mirrored: not from left to right if a label names a side."""
    names = list(labels)
    without = [_LETTERS.sub("", name) for name in names]
    paired = len(set(without)) < len(set(names))
    return tuple("DH" if paired or any(map(_SIDES.search, names)) else AXES)


def rotation_axes(spacing_3: Array) -> tuple[str, ...]:
    """Axes about which a crop is rotated: with thick slices only within them."""
    if spacing_3.max() > _ANISOTROPY * spacing_3.min():
        return (AXES[int(spacing_3.argmax())],)
    return tuple(AXES)


def scaling_axes(spacing_3: Array) -> tuple[str, ...]:
    """Axes along which a crop is scaled or made coarser: with thick slices not across them."""
    turned = rotation_axes(spacing_3)
    return turned if len(turned) > 1 else tuple(axis for axis in AXES if axis not in turned)


def _size(sides: Iterable[float]) -> Size:
    depth, height, width = (int(side) for side in sides)
    return depth, height, width


def workers_for(store: str, crop_bytes: float) -> int:
    """Reader processes of a rank."""
    return 4 if "://" in store or crop_bytes > 16 * 2**20 else 2
