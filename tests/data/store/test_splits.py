from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segresmamba.data import convert, open_dataset
from segresmamba.data.store.splits import make_splits, read_splits
from segresmamba.errors import DataError
from tests.data.raw import write_raw


@settings(max_examples=50)
@given(st.dictionaries(st.integers(0, 99).map(str), st.sampled_from("abcdefgh"), min_size=2))
def test_a_patient_is_never_on_both_sides(patients: dict[str, str]) -> None:
    splits = make_splits(patients, patients)
    assert len(splits) == (
        min(5, len(set(patients.values()))) if len({*patients.values()}) > 1 else 0
    )
    for split in splits:
        sides = [{patients[case_id] for case_id in side} for side in (split.train, split.val)]
        assert not sides[0] & sides[1]
        assert sorted(split.train + split.val) == sorted(patients)


def test_own_splits_are_saved_in_the_store(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    own = [{"train": ["case_1", "case_2"], "val": ["case_0"]}]
    (tmp_path / "mine.json").write_text(json.dumps(own))
    convert(raw, tmp_path / "store", splits=tmp_path / "mine.json")
    assert open_dataset(tmp_path / "store").splits == own


@pytest.mark.parametrize(
    ("content", "message", "got"),
    [
        ('[{"train": ["a"], "val": ["z"]}]', "unknown cases", "z"),
        ('[{"train": ["a", "b"], "val": ["b"]}]', "holds out", "b"),
        ('[{"train": ["a"], "val": []}]', "no cases", "1 train, 0 val"),
        ('{"train": ["a"]}', "cannot be read", "tuple"),
        (None, "cannot be read", "No such file"),
    ],
)
def test_bad_splits_are_refused(
    tmp_path: Path, content: str | None, message: str, got: str
) -> None:
    path = tmp_path / "mine.json"
    if content:
        path.write_text(content, encoding="utf-8-sig")
    with pytest.raises(DataError, match=message) as caught:
        read_splits(path, ["a", "b"])
    assert got in caught.value.got
    assert caught.value.where.startswith(str(path))
