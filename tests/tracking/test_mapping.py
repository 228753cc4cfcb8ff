from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segresmamba.tracking.journal import JournalRecord
from segresmamba.tracking.mapping import batches, chunks, flatten, new_points, valid_name


def test_settings_are_flattened_and_written_as_overrides_are() -> None:
    values = {"train": {"lr": 1e-4, "threads": None, "fused": True}, "patch": [64, 64], "name": "a"}
    assert flatten(values) == {
        "train.lr": "0.0001",
        "train.threads": "null",
        "train.fused": "true",
        "patch": "[64, 64]",
        "name": "a",
    }


def test_an_empty_section_is_kept() -> None:
    assert flatten({"regions": {}}) == {"regions": "{}"}


@settings(deadline=None)
@given(st.text())
def test_any_key_becomes_a_name_that_mlflow_takes(key: str) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    name = valid_name(key)
    _validate_metric_name(name)
    _validate_param_name(name)
    assert 0 < len(name) <= 250
    assert valid_name(name) == name


@pytest.mark.parametrize("key", ["train/loss", "time/step_s", "validation/dice/grey matter", "a.b"])
def test_an_ordinary_key_is_its_own_name(key: str) -> None:
    assert valid_name(key) == key


def metrics(step: int, epoch: float | None = None, **values: float | str) -> JournalRecord:
    return JournalRecord("metrics", 5, {"step": step, "epoch": epoch, "values": values}, 0)


def test_a_step_that_was_sent_is_not_sent_again() -> None:
    last_step: dict[str, int] = {}
    assert len(new_points(metrics(1, loss=0.5), last_step)) == 1
    assert new_points(metrics(1, loss=0.4), last_step) == []
    assert new_points(metrics(0, loss=0.4), last_step) == []
    assert [point.key for point in new_points(metrics(1, dice=0.4), last_step)] == ["dice"]
    assert [point.step for point in new_points(metrics(2, loss=0.4), last_step)] == [2]


def test_the_epoch_is_a_metric_of_its_own() -> None:
    points = new_points(metrics(4, 0.5, loss=0.25), {})
    assert points == [("loss", 0.25, 5, 4), ("epoch", 0.5, 5, 4)]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["metrics", "tags", "status", "artifact"]), max_size=700))
def test_batches_keep_the_order_and_isolate_a_status(kinds: list[str]) -> None:
    records = [JournalRecord(kind, 0, {}, index) for index, kind in enumerate(kinds)]
    groups = list(batches(records))
    assert [record for group in groups for record in group] == records
    for group in groups:
        assert 0 < len(group) <= 200
        assert len(group) == 1 or all(record.kind != "status" for record in group)


@settings(deadline=None)
@given(st.lists(st.integers()), st.integers(1, 10))
def test_chunks_lose_nothing(items: list[int], size: int) -> None:
    parts = list(chunks(items, size))
    assert [item for part in parts for item in part] == items
    assert all(0 < len(part) <= size for part in parts)
