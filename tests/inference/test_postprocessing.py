from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from segresmamba.errors import DataError
from segresmamba.inference.postprocessing import (
    Postprocessing,
    Rule,
    apply,
    read_rules,
    write_postprocessing,
)

SPACING = (1.0, 2.0, 0.5)  # a voxel is 1 mm^3
LARGEST = Rule(name="ball", values=(1,), keep_largest=True)


def boxes() -> NDArray[np.uint8]:
    """Of value 1, components of 27, 8 and 1 voxels; of value 2, one of 8 voxels."""
    label = np.zeros((12, 12, 12), np.uint8)
    label[1:4, 1:4, 1:4] = 1
    label[6:8, 6:8, 6:8] = 1
    label[10, 10, 10] = 1
    label[6:8, 6:8, 9:11] = 2
    return label


def test_the_largest_component_is_kept_and_other_classes_stay() -> None:
    label = boxes()
    cleaned = apply(label, [LARGEST], SPACING)
    assert np.count_nonzero(cleaned == 1) == 27
    np.testing.assert_array_equal(cleaned == 2, label == 2)
    assert cleaned.dtype == label.dtype
    np.testing.assert_array_equal(label, boxes())


@pytest.mark.parametrize(("minimum_mm3", "voxels"), [(0, 36), (1, 36), (1.5, 35), (8, 35), (9, 27)])
def test_components_below_a_size_in_mm3_are_removed(minimum_mm3: float, voxels: int) -> None:
    rule = Rule(name="ball", values=(1,), minimum_mm3=minimum_mm3)
    assert np.count_nonzero(apply(boxes(), [rule], SPACING) == 1) == voxels


def test_the_size_in_mm3_depends_on_the_voxel_size() -> None:
    rule = Rule(name="ball", values=(1,), minimum_mm3=8)
    assert np.count_nonzero(apply(boxes(), [rule], (2, 2, 2)) == 1) == 36


def test_voxels_that_touch_at_a_corner_are_connected() -> None:
    label = np.zeros((4, 4, 4), np.uint8)
    label[0, 0, 0] = label[1, 1, 1] = label[2, 2, 2] = 1
    np.testing.assert_array_equal(apply(label, [LARGEST], SPACING), label)


def test_a_region_is_cleaned_as_one_structure() -> None:
    whole = Rule(name="whole", values=(1, 2), keep_largest=True)
    label = np.zeros((8, 8, 8), np.uint8)
    label[0:2, 0:2, 0:2], label[2, 0:2, 0:2] = 1, 2
    label[5:7, 5:7, 5:7] = 2
    cleaned = apply(label, [whole], SPACING)
    assert np.count_nonzero(cleaned[:4] != label[:4]) == 0
    assert not cleaned[4:].any()


def test_rules_are_applied_one_after_the_other() -> None:
    small = Rule(name="ball", values=(1,), minimum_mm3=100)
    assert not (apply(boxes(), [LARGEST, small], SPACING) == 1).any()


def test_nothing_is_done_without_rules_or_without_the_class() -> None:
    label = boxes()
    assert apply(label, [], SPACING) is label
    absent = Rule(name="absent", values=(7,), keep_largest=True, minimum_mm3=1e9)
    np.testing.assert_array_equal(apply(label, [absent], SPACING), label)


@given(st_numpy.arrays(np.uint8, (5, 4, 6), elements={"min_value": 0, "max_value": 2}))
def test_a_second_application_changes_nothing(label: NDArray[np.uint8]) -> None:
    rules = [LARGEST, Rule(name="box", values=(2,), minimum_mm3=3)]
    once = apply(label, rules, SPACING)
    np.testing.assert_array_equal(apply(once, rules, SPACING), once)
    assert set(np.unique(once[once != label])) <= {0}


def test_rules_lie_beside_their_weights_and_hold_for_these_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tmp_path / "weights.pt"
    assert read_rules(weights, 8) == ()
    write_postprocessing(weights, Postprocessing(step=8, rules=(LARGEST,), cases=("a",)))
    assert read_rules(weights, 8) == (LARGEST,)
    assert not caplog.messages
    assert read_rules(weights, 9) == ()
    assert "decided for the weights of step 8" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        "{",
        json.dumps({"step": 1, "rules": [{"name": "a", "values": [1], "keep_smallest": True}]}),
        json.dumps({"step": 1, "rules": [], "version": 2}),
    ],
    ids=["damaged", "unknown key", "newer"],
)
def test_rules_that_cannot_be_understood_are_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "postprocessing.json").write_text(content)
    with pytest.raises(DataError, match=r"postprocessing\.json"):
        read_rules(tmp_path / "weights.pt", 1)
