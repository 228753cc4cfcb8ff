"""The rules of a proposal, each on its own."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segresmamba.configure import rules


def test_the_target_is_the_median_spacing() -> None:
    spacing = np.array([[1.0, 1, 1], [2, 1, 1], [3, 2, 1]])
    assert rules.target_spacing(spacing, np.full((3, 3), 100.0)).tolist() == [2, 1, 1]


def test_thick_slices_get_the_tenth_percentile_but_never_less_than_the_other_axes() -> None:
    spacing = np.array([[thick, 0.8, 0.8] for thick in (1.0, 2, 5, 5, 5, 5, 5, 5, 5, 5, 5)])
    shape = np.full((11, 3), (20.0, 512, 512))
    assert rules.target_spacing(spacing, shape).tolist() == [2, 0.8, 0.8]
    spacing[:3, 0] = 0.5
    assert rules.target_spacing(spacing, shape).tolist() == [0.8, 0.8, 0.8]
    # Thick, but as many slices as rows: there is nothing to protect.
    assert rules.target_spacing(spacing, np.full((11, 3), 300.0)).tolist() == [5, 0.8, 0.8]


def test_a_case_counts_as_off_the_target_from_a_tenth_on() -> None:
    spacing = np.array([[1.0, 1, 1], [1.05, 1, 1], [1.2, 1, 1], [1, 0.8, 1]])
    assert rules.share_off_target(spacing, np.ones(3)) == 0.5


@pytest.mark.parametrize(
    ("shape", "stages"),
    [
        ((36, 50, 35), 2),
        ((64, 64, 64), 3),
        ((138, 169, 138), 4),
        ((20, 320, 319), 3),
        ((8,) * 3, 2),
    ],
)
def test_small_cases_get_fewer_stages(shape: tuple[int, ...], stages: int) -> None:
    assert rules.stages_for(np.array(shape), 4) == stages


@pytest.mark.parametrize(
    ("shape", "multiple", "patch"),
    [
        ((36, 50, 35), 8, (40, 56, 40)),
        ((138, 169, 138), 32, (128, 192, 128)),
        ((20, 320, 319), 16, (16, 320, 320)),
        ((5, 40, 40), 8, (8, 40, 40)),
        ((5, 6, 7), 8, (8, 8, 16)),  # with one voxel at the deepest level nothing trains
    ],
)
def test_a_patch_for_a_whole_case_is_hardly_larger_than_the_case(
    shape: tuple[int, ...], multiple: int, patch: rules.Size
) -> None:
    assert rules.whole_case(np.array(shape), multiple) == patch
    assert rules.proportional_patch(np.array(shape), math.inf, multiple) == patch


@given(
    shape=st.tuples(*[st.integers(1, 700)] * 3),
    voxels=st.integers(1, 10**8),
    multiple=st.sampled_from([8, 16, 32]),
)
def test_a_patch_has_the_proportions_of_the_case_and_keeps_the_limit(
    shape: tuple[int, int, int], voxels: int, multiple: int
) -> None:
    patch = rules.proportional_patch(np.array(shape), voxels, multiple)
    largest = rules.whole_case(np.array(shape), multiple)
    assert all(side % multiple == 0 for side in patch)
    assert all(side <= most for side, most in zip(patch, largest, strict=True))
    assert math.prod(patch) <= max(voxels, 2 * multiple**3)
    # No side is ahead of another by more than one step, unless that one is at its end.
    for side, whole, size in zip(patch, largest, shape, strict=True):
        for other, other_whole, other_size in zip(patch, largest, shape, strict=True):
            if other < other_whole and side > multiple:
                assert (side - multiple) / size <= other / other_size, (side, whole)


def test_more_voxels_never_give_a_smaller_patch() -> None:
    shape = np.array([187, 512, 512])
    found = [math.prod(rules.proportional_patch(shape, n, 32)) for n in range(10**5, 10**7, 10**5)]
    assert all(before <= after for before, after in pairwise(found))


def test_zero_divides_what_matters_and_nothing_else() -> None:
    gib = 2**30
    assert rules.zero_stage_for(gib // 4, ranks=8, memory_gib=80) == 0
    assert rules.zero_stage_for(2 * gib, ranks=1, memory_gib=16) == 0
    assert rules.zero_stage_for(2 * gib, ranks=8, memory_gib=16) == 1


def test_steps_follow_from_the_passes_and_the_time() -> None:
    wanted, _ = rules.steps_for(crops=500, batch=2, voxels_per_rank=1e6, budget_h=1e6)
    assert wanted == rules.PASSES * 500 / 2
    assert rules.steps_for(1, 2, 1e6, 1e6)[0] == rules.STEPS[0]
    assert rules.steps_for(1e9, 2, 1e6, 1e6)[0] == rules.STEPS[1]
    steps, hours = rules.steps_for(1e9, 2, 1e6, budget_h=1)
    assert steps == rules.VOXELS_PER_S / 1e6 * 3600 // 100 * 100
    assert hours <= 1


@pytest.mark.parametrize(
    ("labels", "axes"),
    [
        (["background", "kidney_left", "kidney_right"], "DH"),
        (["background", "Left-Hippocampus"], "DH"),
        (["lung_l", "lung_r"], "DH"),
        (["lh cortex", "rh cortex"], "DH"),
        (["background", "liver", "bright tissue", "cleft"], "DHW"),
        (["vertebra L1", "vertebra L2", "rib"], "DHW"),
    ],
)
def test_labels_that_name_a_side_switch_mirroring_off(labels: list[str], axes: str) -> None:
    assert rules.flip_axes(labels) == tuple(axes)


def test_thick_slices_are_rotated_within_themselves() -> None:
    assert rules.rotation_axes(np.array([5, 0.8, 0.8])) == ("D",)
    assert rules.rotation_axes(np.array([0.8, 3, 0.8])) == ("H",)
    assert rules.rotation_axes(np.array([2, 0.8, 0.8])) == ("D", "H", "W")
    assert rules.scaling_axes(np.array([0.8, 3, 0.8])) == ("D", "W")
    assert rules.scaling_axes(np.array([2, 0.8, 0.8])) == ("D", "H", "W")


def test_air_tells_a_ct_from_other_images() -> None:
    assert rules.looks_like_ct(np.array([-1024.0, -1000, -3]))
    assert not rules.looks_like_ct(np.array([0.0, -20, -1000]))


def test_a_store_at_a_url_and_large_crops_get_more_readers() -> None:
    assert rules.workers_for("mine.zarr", 2**20) < rules.workers_for("s3://b/mine.zarr", 2**20)
    assert rules.workers_for("mine.zarr", 2**20) < rules.workers_for("mine.zarr", 2**26)
