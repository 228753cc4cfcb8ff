from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segresmamba.data import Dataset, PatchSampler, convert, open_dataset
from segresmamba.data.stream.sampler import rank_indices
from segresmamba.errors import DataError
from tests.data.raw import SHAPES, label_path, write_nifti, write_raw

PATCH = (20, 24, 28)


def sampler_of(dataset: Dataset, **changes: Any) -> PatchSampler:
    settings: dict[str, Any] = {
        "case_ids": dataset.case_ids,
        "patch": PATCH,
        "seed": 0,
        "foreground_fraction": 1 / 3,
    }
    return PatchSampler(dataset, **(settings | changes))


@pytest.fixture(scope="module")
def dataset(sound_store: Path) -> Dataset:
    return open_dataset(sound_store)


def test_a_crop_is_a_pure_function_of_seed_and_number(dataset: Dataset) -> None:
    places = [sampler_of(dataset).locate(index) for index in range(60)]
    again = sampler_of(open_dataset(dataset.where))
    assert [again.locate(index) for index in reversed(range(60))] == places[::-1]
    other = sampler_of(dataset, seed=1)
    assert [other.locate(index) for index in range(60)] != places


def test_crops_lie_inside_the_volume(dataset: Dataset) -> None:
    sampler = sampler_of(dataset, foreground_fraction=0.5)
    for index in range(200):
        case_id, start = sampler.locate(index)
        assert np.all(np.array(start) >= 0)
        assert np.all(np.add(start, PATCH) <= dataset[case_id].shape_DHW)


def test_every_case_comes_once_a_round_and_in_a_new_order(dataset: Dataset) -> None:
    sampler = sampler_of(dataset)
    cases = [sampler.locate(index)[0] for index in range(3 * 40)]
    rounds = [tuple(cases[first : first + 3]) for first in range(0, len(cases), 3)]
    assert all(sorted(one) == list(dataset.case_ids) for one in rounds)
    assert len(set(rounds)) == 6  # all orders of three


@given(
    fraction=st.floats(0, 1),
    first=st.integers(0, 10**7),
    count=st.integers(1, 200),
)
def test_foreground_crops_are_spread_evenly(
    dataset: Dataset, fraction: float, first: int, count: int
) -> None:
    sampler = sampler_of(dataset, foreground_fraction=fraction)
    drawn = sum(sampler.is_foreground(index) for index in range(first, first + count))
    assert abs(drawn - count * fraction) < 1 + 1e-4 * count


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1 / 3, 0.5, 1.0])
def test_the_foreground_share_is_exact(dataset: Dataset, fraction: float) -> None:
    sampler = sampler_of(dataset, foreground_fraction=fraction)
    drawn = [sampler.is_foreground(index) for index in range(12 * 1000)]
    assert sum(drawn) == round(12_000 * fraction)
    steps = np.reshape(drawn, (-1, 12)).sum(axis=1)
    assert set(steps) == {round(12 * fraction)}  # in every global batch of twelve


def test_foreground_crops_hold_the_drawn_class_at_their_centre(dataset: Dataset) -> None:
    sampler = sampler_of(dataset, foreground_fraction=1, patch=(3, 3, 3))
    seen: Counter[int] = Counter()
    for index in range(300):
        case_id, start = sampler.locate(index)
        if case_id == "case_0":  # has the ball alone
            continue
        _, label = dataset[case_id].crop(start, (3, 3, 3))
        seen[int(label[1, 1, 1])] += 1
    assert set(seen) == {1, 2}
    assert 70 < seen[1] < 130  # half of 200, four standard deviations: not by volume


def test_random_crops_reach_every_place(dataset: Dataset) -> None:
    sampler = sampler_of(dataset, foreground_fraction=0, case_ids=["case_0"], patch=(33, 49, 40))
    assert {sampler.locate(index)[1] for index in range(60)} == {
        (depth, height, 0) for depth in (0, 1) for height in (0, 1)
    }


def test_without_foreground_a_crop_is_random(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    write_nifti(label_path(raw, "case_0"), np.zeros(SHAPES[0], np.uint8))
    convert(raw, tmp_path / "store")
    dataset = open_dataset(tmp_path / "store")
    sampler = sampler_of(dataset, case_ids=["case_0"], foreground_fraction=1)
    assert len({sampler.locate(index)[1] for index in range(20)}) > 10


@given(
    world_size=st.integers(1, 6),
    micro_batch=st.integers(1, 5),
    start=st.integers(0, 1000),
    steps=st.integers(1, 5),
)
def test_ranks_divide_one_sequence_among_themselves(
    world_size: int, micro_batch: int, start: int, steps: int
) -> None:
    ranks = [
        list(
            islice(
                rank_indices(
                    rank=rank, world_size=world_size, micro_batch=micro_batch, start_index=start
                ),
                steps,
            )
        )
        for rank in range(world_size)
    ]
    sequence = [index for step in zip(*ranks, strict=True) for part in step for index in part]
    assert sequence == list(range(start, start + steps * world_size * micro_batch))


def test_a_volume_smaller_than_the_patch_lies_in_its_middle(dataset: Dataset) -> None:
    patch = (34, 38, 36)
    assert dataset.smaller_than(patch, dataset.case_ids) == ["case_2"]
    wide, narrow = sampler_of(dataset, patch=patch), sampler_of(dataset, patch=(34, 38, 33))
    for index in range(12):
        (case_id, (_, _, first)), (_, (_, _, expected)) = wide.locate(index), narrow.locate(index)
        shape = dataset[case_id].shape_DHW
        assert first == -1 if shape[2] == 33 else 0 <= first <= shape[2] - 36
        assert expected >= 0


def test_no_cases_are_refused(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="no cases"):
        sampler_of(dataset, case_ids=[])
