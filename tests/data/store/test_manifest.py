from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segresmamba.data import convert
from segresmamba.data.store.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    build_manifest,
    read_manifest,
)
from segresmamba.data.store.splits import make_splits
from segresmamba.errors import DataError
from segresmamba.storage import atomic
from tests.damage import flip, flips

CASE_IDS = st.lists(st.integers(0, 99).map("case_{}".format), min_size=2, max_size=20, unique=True)


@settings(max_examples=30)
@given(case_ids=CASE_IDS, data=st.data())
def test_each_case_is_held_out_once_whatever_the_order(
    case_ids: list[str], data: st.DataObject
) -> None:
    splits = make_splits(case_ids)
    assert len(splits) == min(5, len(case_ids))
    assert sorted(case_id for split in splits for case_id in split.val) == sorted(case_ids)
    for split in splits:
        assert sorted(split.train + split.val) == sorted(case_ids)
        assert split.train
    assert make_splits(data.draw(st.permutations(case_ids))) == splits


def test_one_case_cannot_be_split() -> None:
    assert make_splits(["alone"]) == ()


def test_a_manifest_is_read_as_written(sound_store: Path, tmp_path: Path) -> None:
    manifest = read_manifest(sound_store)
    atomic.write_text(tmp_path / MANIFEST, manifest.model_dump_json())
    assert read_manifest(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


def test_the_digest_names_the_content(sound_store: Path) -> None:
    manifest = read_manifest(sound_store)

    def digest(**changes: Any) -> str:
        keys = ("name", "channel_names", "labels", "storage", "cases", "splits")
        return build_manifest(**({key: getattr(manifest, key) for key in keys} | changes)).digest

    moved = [(*row[:3], row[3] + 1) for row in manifest.cases["case_0"].affine[:3]]
    case = manifest.cases["case_0"].model_copy(
        update={"affine": (*moved, manifest.cases["case_0"].affine[3])}
    )
    assert digest() == manifest.digest
    assert digest(name="another name") == manifest.digest
    assert digest(cases=dict(reversed(manifest.cases.items()))) == manifest.digest
    assert digest(labels={"background": 0, "box": 1, "ball": 2}) != manifest.digest
    assert digest(cases=manifest.cases | {"case_0": case}) != manifest.digest


def test_the_fingerprint_sums_the_dataset_up(sound_store: Path) -> None:
    manifest = read_manifest(sound_store)
    fingerprint = manifest.fingerprint
    assert fingerprint["cases"] == 3
    assert fingerprint["median_shape_DHW"] == [40, 45, 36]
    assert fingerprint["median_spacing_mm"] == [1.5, 2.0, 1.0]
    assert list(fingerprint["mean_intensities"]) == ["channel 0", "channel 1"]
    boxes = [case.class_voxels.get(2, 0) for case in manifest.cases.values()]
    assert boxes == [0, 5 * 6 * 4, 5 * 6 * 4]
    assert fingerprint["mean_class_volume_ml"]["box"] == pytest.approx(80 * 3 / 1000)


def test_a_newer_schema_is_refused(store: Path) -> None:
    path = store / "dataset.json"
    newer = json.loads(path.read_text()) | {"schema_version": SCHEMA_VERSION + 1, "new": 1}
    path.write_text(json.dumps(newer))
    with pytest.raises(DataError, match="newer version") as caught:
        read_manifest(store)
    assert "upgrade" in caught.value.remedy


def test_the_grid_transform_keeps_its_stored_key(sound_store: Path, tmp_path: Path) -> None:
    """Earlier versions read and write it as `refit`, and refuse unknown keys."""
    manifest = read_manifest(sound_store)
    stored = json.loads(manifest.model_dump_json())
    assert all(case["refit"] is None for case in stored["cases"].values())
    transform = {
        "full_DHW": [4, 4, 4],
        "box_DHW": [[0, 4], [0, 4], [1, 3]],
        "shape_DHW": [4, 4, 2],
        "zoom_DHW": [1.0, 1.0, 1.0],
    }
    stored["cases"]["case_1"]["refit"] = transform
    (tmp_path / MANIFEST).write_text(json.dumps(stored))
    record = read_manifest(tmp_path).cases["case_1"]
    assert record.grid_transform is not None
    assert record.grid_transform.shape_DHW == (4, 4, 2)
    written = record.model_dump(mode="json")  # as the case's group has it
    assert written["refit"] == transform
    assert "grid_transform" not in written
    assert json.loads(read_manifest(tmp_path).model_dump_json()) == stored


def test_a_digit_of_a_statistic_that_changed_is_noticed(sound_store: Path, tmp_path: Path) -> None:
    content = json.loads((sound_store / MANIFEST).read_text())
    statistics = content["cases"]["case_1"]["statistics"][0]
    statistics["mean"] += 1
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"damaged .*dataset.json: checksum crc32c:") as caught:
        read_manifest(tmp_path)
    assert "segresmamba convert" in caught.value.remedy
    statistics["mean"] -= 1
    (tmp_path / MANIFEST).write_text(json.dumps(content))  # another layout of the same content
    assert read_manifest(tmp_path) == read_manifest(sound_store)
    del content["checksum"]  # as an earlier version wrote it
    content["schema_version"] = 2
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    assert read_manifest(tmp_path).cases == read_manifest(sound_store).cases


def test_no_flipped_bit_of_a_manifest_goes_unnoticed(sound_store: Path, tmp_path: Path) -> None:
    path = tmp_path / MANIFEST
    path.write_bytes((sound_store / MANIFEST).read_bytes())
    right = read_manifest(tmp_path)
    unnoticed = []
    for where in flips(path, 300):
        try:
            if read_manifest(tmp_path) != right:  # a blank may change without harm
                unnoticed.append(where)
        except DataError:
            pass
    assert unnoticed == []


def test_a_store_without_cases_is_refused(sound_store: Path, tmp_path: Path) -> None:
    content = json.loads((sound_store / MANIFEST).read_text())
    del content["checksum"]  # as an earlier version wrote it
    content["cases"] = {}
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError, match="cases"):
        read_manifest(tmp_path)


def test_converting_again_replaces_a_damaged_manifest(raw: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    convert(raw, store)
    right = (store / MANIFEST).read_bytes()
    flip(store / MANIFEST)
    assert convert(raw, store).converted == ()
    assert (store / MANIFEST).read_bytes() == right


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema_version": 1}', '{"schema_version": Infinity}']
)
def test_a_damaged_manifest_is_refused(store: Path, content: str) -> None:
    (store / "dataset.json").write_text(content)
    with pytest.raises(DataError, match="damaged") as caught:
        read_manifest(store)
    assert caught.value.where.endswith("dataset.json")


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no converted dataset") as caught:
        read_manifest(tmp_path)
    assert "segresmamba convert" in caught.value.remedy


NAMES = ["../case_1", "/etc", "..", ".hidden", "a\\b", "a/b", "", "dataset.json"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["cases", "splits"])
def test_a_case_whose_name_would_be_another_path_is_refused(
    sound_store: Path, tmp_path: Path, name: str, place: str
) -> None:
    content = json.loads((sound_store / MANIFEST).read_text())
    del content["checksum"]
    if place == "cases":
        content["cases"][name] = content["cases"]["case_1"]
    else:
        content["splits"][0]["train"].append(name)
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError, match="cannot be a folder's name") as caught:
        read_manifest(tmp_path)
    assert caught.value.got == repr(name)
    assert caught.value.where == str(tmp_path / MANIFEST)
