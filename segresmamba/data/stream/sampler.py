"""The place of each crop of a run: a pure function of the seed and the crop's number.

Crop i of the run is the same for any number of ranks, workers and restarts, because ranks only
share out the numbers. So a run can go on in the middle of an epoch without a state of the sampler.
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

    In each round every case is drawn once, in a new random order. A foreground crop is centred on a
    voxel that is drawn as in nnU-Net: first a class of the case, all equally likely, then one of
    its stored voxels. It is moved if needed, so that it lies inside the volume. Any other crop lies
    anywhere inside the volume. Along an axis on which the volume is smaller than the crop, the
    volume lies in the middle of the crop.

    Args:
        dataset: An opened store.
        case_ids: Cases to draw from.
        patch: Size of a crop, (D, H, W).
        seed: Seed of all draws.
        foreground_fraction: Share of foreground crops. They are spread evenly: any n consecutive
            crops have n * foreground_fraction of them, rounded up or down. A case without
            foreground gives a random crop instead.

    Raises:
        DataError: If there are no cases, or one is unknown.
    """

    dataset: Dataset
    case_ids: Sequence[str]
    patch: tuple[int, int, int]
    seed: int
    foreground_fraction: float

    def __post_init__(self) -> None:
        if not self.case_ids:
            raise DataError(
                "there are no cases to draw crops from",
                where=self.dataset.where,
                got="0 cases",
                remedy="choose another train.fold, or convert more cases",
            )

    def case_of(self, index: int, attempt: int = 0) -> Case:
        """The case of crop number `index` of the run.

        Args:
            index: The crop's number.
            attempt: How many cases were found damaged before, for this crop. Each attempt takes the
                next case of the round, and begins again after the last.
        """
        round_, place = divmod(index, len(self.case_ids))
        order = _order(self.seed, round_, len(self.case_ids))
        return self.dataset[self.case_ids[order[(place + attempt) % len(order)]]]

    def locate(self, index: int, attempt: int = 0) -> tuple[str, tuple[int, int, int]]:
        """The case and the first voxel (D, H, W) of a crop; for the arguments see `case_of`.

        The first voxel is negative along an axis on which the case is smaller than the crop: by
        half of the padding, rounded down, as in sliding-window inference.

        Raises:
            DamagedCaseError: If the case's foreground positions are damaged.
        """
        case = self.case_of(index, attempt)
        # A generator for each crop, so that no crop depends on the crops before it.
        rng = np.random.default_rng([self.seed, _PLACE, index, *([attempt] if attempt else [])])
        room = [size - step for size, step in zip(case.shape_DHW, self.patch, strict=True)]
        if self.is_foreground(index) and case.class_values:
            value = case.class_values[rng.integers(len(case.class_values))]
            row = int(rng.integers(case.record.class_positions[value]))
            centre = case.class_position(value, row)
            wanted = [voxel - step // 2 for voxel, step in zip(centre, self.patch, strict=True)]
            firsts = [min(max(first, 0), most) for first, most in zip(wanted, room, strict=True)]
        else:
            firsts = [int(rng.integers(0, max(most, 0) + 1)) for most in room]
        depth, height, width = (
            first if most >= 0 else -(-most // 2) for first, most in zip(firsts, room, strict=True)
        )
        return case.case_id, (depth, height, width)

    def is_foreground(self, index: int) -> bool:
        """Whether crop number `index` is centred on foreground, if its case has any."""
        # The float 0.333... stands for 1/3. A fraction of small integers has exact multiples.
        share = Fraction(self.foreground_fraction).limit_denominator(10_000)
        return int((index + 1) * share) > int(index * share)


def rank_indices(
    *, rank: int, world_size: int, micro_batch: int, start_index: int
) -> Iterator[list[int]]:
    """Yield the crop numbers of one rank's micro batches, without end.

    From every `world_size * micro_batch` consecutive numbers, rank r takes the r-th `micro_batch`.
    """
    first = start_index + rank * micro_batch
    while True:
        yield list(range(first, first + micro_batch))
        first += world_size * micro_batch


@lru_cache(maxsize=4)  # a batch may lie on the border of two rounds
def _order(seed: int, round_: int, cases: int) -> tuple[int, ...]:
    """The order in which a round draws the cases."""
    rng = np.random.default_rng([seed, _ORDER, round_])
    return tuple(rng.permutation(cases).tolist())
