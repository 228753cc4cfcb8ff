from __future__ import annotations

import numpy as np
import pytest

from segresmamba.data.volumes.statistics import class_positions, class_voxels, positions_kept


@pytest.mark.parametrize(
    ("voxels", "kept"),
    [(1, 1), (9_999, 9_999), (10_001, 10_000), (1_000_000, 10_000), (2_000_001, 20_001)],
)
def test_as_many_positions_are_kept_as_nnunet_keeps(voxels: int, kept: int) -> None:
    assert positions_kept(voxels) == kept


def test_positions_show_their_class_and_do_not_repeat() -> None:
    label = np.random.default_rng(0).choice([0, 1, 3], (30, 40, 50), p=[0.5, 0.49, 0.01])
    voxels = class_voxels(label)
    assert voxels == {1: (label == 1).sum(), 3: (label == 3).sum()}
    positions = class_positions(label, voxels, "case")
    kept = positions_kept(voxels[1])
    assert len(positions) == kept + voxels[3]
    assert len(np.unique(positions, axis=0)) == len(positions)
    found = label[tuple(positions.T)]
    assert (found[:kept] == 1).all()
    assert (found[kept:] == 3).all()


def test_positions_are_spread_and_depend_on_the_case_alone() -> None:
    label = np.ones((40, 40, 40), np.uint8)
    first, again, other = (
        class_positions(label, {1: label.size}, case_id) for case_id in ("a", "a", "b")
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_allclose(first.mean(axis=0), 19.5, atol=0.6)  # five standard errors


def test_an_empty_label_has_none() -> None:
    label = np.zeros((4, 4, 4), np.uint8)
    assert class_voxels(label) == {}
    assert class_positions(label, {}, "case").shape == (0, 3)
