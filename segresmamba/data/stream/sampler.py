"""Where the crops of a run are: a pure function of the seed and the crop's number.

Crop i of the whole run is the same for any number of ranks, workers and restarts: ranks only divide
the numbers among themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from segresmamba.data.store.dataset import Case, Dataset
from segresmamba.errors import DataError

_ORDER, _PLACE = 0, 1  # separate streams of random numbers


@dataclass(frozen=True)
class PatchSampler:
    """Draws cases and crops.

    Every case is drawn once before any is drawn again, in a new random order each time; an epoch is
    `crops_per_case` such rounds. A foreground crop is centred on a voxel drawn as in nnU-Net: a
    class uniformly among those of the case, then one of its stored voxels; moved where needed to
    lie inside the volume. Other crops lie anywhere inside the volume.

    Args:
        dataset: Where the cases lie.
        case_ids: Cases to draw from.
        patch: Size of a crop, (D, H, W).
        seed: Of all draws.
        foreground_fraction: Share of foreground crops. They are spread evenly over the sequence:
            of any n consecutive crops, n * foreground_fraction rounded up or down are such. (A case
            without any foreground gives a random crop instead.)
        crops_per_case: Rounds per epoch.

    Raises:
        DataError: If there are no cases, one is unknown, or one is smaller than the patch.
    """

    dataset: Dataset
    case_ids: Sequence[str]
    patch: tuple[int, int, int]
    seed: int
    foreground_fraction: float
    crops_per_case: int

    def __post_init__(self) -> None:
        self._require_patch_fits()

    def locate(self, index: int) -> tuple[str, tuple[int, int, int]]:
        """Crop number `index` of the run: its case, and its first voxel (D, H, W)."""
        case = self.dataset[self._case_id(index)]
        rng = np.random.default_rng([self.seed, _PLACE, index])
        room = [size - step for size, step in zip(case.shape_DHW, self.patch, strict=True)]
        if self.is_foreground(index) and case.class_values:
            centre = _foreground_voxel(case, rng)
            wanted = [voxel - step // 2 for voxel, step in zip(centre, self.patch, strict=True)]
            depth, height, width = (
                min(max(first, 0), most) for first, most in zip(wanted, room, strict=True)
            )
        else:
            depth, height, width = (int(rng.integers(0, most + 1)) for most in room)
        return case.case_id, (depth, height, width)

    def is_foreground(self, index: int) -> bool:
        """Whether crop number `index` is to be centred on foreground."""
        # A fraction of small integers, so that its multiples are exact: 1/3 is meant, not 0.333...
        share = Fraction(self.foreground_fraction).limit_denominator(10_000)
        return int((index + 1) * share) > int(index * share)

    def epoch_of(self, index: int) -> int:
        """The epoch that crop number `index` belongs to, from 0."""
        return index // (len(self.case_ids) * self.crops_per_case)

    def _case_id(self, index: int) -> str:
        round_, place = divmod(index, len(self.case_ids))
        return self.case_ids[_order(self.seed, round_, len(self.case_ids))[place]]

    def _require_patch_fits(self) -> None:
        if not self.case_ids:
            raise DataError(
                "there are no cases to draw crops from",
                where=self.dataset.where,
                got="0 cases",
                remedy="choose another train.fold, or convert more cases",
            )
        shapes = {case_id: self.dataset[case_id].shape_DHW for case_id in self.case_ids}
        smallest = [min(shape[axis] for shape in shapes.values()) for axis in range(3)]
        for case_id, shape in shapes.items():
            if any(size < step for size, step in zip(shape, self.patch, strict=True)):
                raise DataError(
                    f"the patch is larger than case {case_id}",
                    where="data.patch",
                    got=f"{list(self.patch)} for a volume of {list(shape)} voxels (D, H, W)",
                    remedy=f"set data.patch to at most {smallest}, which fits every case: "
                    f"data.patch={str(smallest).replace(' ', '')}",
                )


def rank_indices(
    *, rank: int, world_size: int, micro_batch: int, start_index: int
) -> Iterator[list[int]]:
    """The crop numbers of one rank's micro batches, without end.

    Of each `world_size * micro_batch` consecutive numbers, rank r takes the r-th `micro_batch`.
    """
    first = start_index + rank * micro_batch
    while True:
        yield list(range(first, first + micro_batch))
        first += world_size * micro_batch


def _foreground_voxel(case: Case, rng: np.random.Generator) -> tuple[int, int, int]:
    value = case.class_values[rng.integers(len(case.class_values))]
    return case.class_position(value, int(rng.integers(case.record.class_positions[value])))


@lru_cache(maxsize=4)
def _order(seed: int, round_: int, cases: int) -> tuple[int, ...]:
    rng = np.random.default_rng([seed, _ORDER, round_])
    return tuple(rng.permutation(cases).tolist())
