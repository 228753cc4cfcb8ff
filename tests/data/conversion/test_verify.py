from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from segresmamba.data import convert, open_dataset, repair, verify
from segresmamba.data.store import layout
from segresmamba.data.store.splits import Split
from segresmamba.errors import DataError
from tests.data.raw import SHAPES, describe, image_path, label_path, write_nifti

CASE = "case_1"
MOVED = [[1, 0, 0, 5], [0, 2, 0, 5], [0, 0, 1.5, 5], [0, 0, 0, 1]]


def shard(store: Path, array: str, dimensions: int) -> Path:
    return layout.shard_file(store / CASE / array, dimensions)


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    content.pop("checksum", None)
    change(content)
    path.write_text(json.dumps(content))


def edit_records(store: Path, **changes: Any) -> None:
    """Change a case's record consistently in the manifest and in its group."""
    edit_json(store / "dataset.json", lambda content: content["cases"][CASE].update(changes))
    edit_json(
        store / CASE / "zarr.json",
        lambda content: content["attributes"][layout.RECORD].update(changes),
    )


def set_voxels(store: Path, array: str, where: Any, value: float) -> None:
    with layout.checking_pipeline():
        zarr.open_array(store / CASE / array, mode="r+")[where] = value


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def test_a_sound_store_has_no_problems(sound_store: Path) -> None:
    assert verify(sound_store) == []


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "case missing": (lambda s: shutil.rmtree(s / CASE), "the case is missing"),
    "image truncated": (lambda s: truncate(shard(s, "0", 4)), "cannot be read"),
    "image bit flipped": (lambda s: flip_bit(shard(s, "0", 4)), "cannot be read"),
    "label bit flipped": (lambda s: flip_bit(shard(s, layout.LABEL, 3)), "cannot be read"),
    "positions bit flipped": (lambda s: flip_bit(shard(s, layout.POSITIONS, 2)), "cannot be read"),
    "image file missing": (lambda s: shard(s, "0", 4).unlink(), "shard file is missing"),
    "label file missing": (lambda s: shard(s, layout.LABEL, 3).unlink(), "shard file is missing"),
    "metadata missing": (lambda s: (s / CASE / "0" / "zarr.json").unlink(), "cannot be read"),
    "image changed": (lambda s: set_voxels(s, "0", (0, 1, 2, 3), 7), "not those that were"),
    "label changed": (lambda s: set_voxels(s, layout.LABEL, (0, 0, 0), 1), "class volumes"),
    "label undeclared": (lambda s: set_voxels(s, layout.LABEL, (0, 0, 0), 9), "undeclared"),
    "label emptied": (lambda s: set_voxels(s, layout.LABEL, ..., 0), "shard file is missing"),
    "positions moved": (lambda s: set_voxels(s, layout.POSITIONS, ..., 1), "positions do not show"),
    "positions outside": (
        lambda s: set_voxels(s, layout.POSITIONS, ..., 999),
        "outside the volume",
    ),
    "shape": (lambda s: edit_records(s, shape_CDHW=[2, 1, 1, 1]), "the image is int16"),
    "dtype": (lambda s: edit_records(s, image_dtype="float32"), "not float32"),
    "label dtype": (lambda s: edit_records(s, label_dtype="int16"), "the label is uint8"),
    "spacing": (lambda s: edit_records(s, spacing_mm=[1, 1, 1]), "is not that of the affine"),
    "affine": (lambda s: edit_records(s, affine=[[0] * 4] * 4), "does not place the voxels"),
    "affine moved": (
        lambda s: edit_records(s, affine=MOVED),
        "does not follow from that of the files",
    ),
    "record": (
        lambda s: edit_json(s / "dataset.json", lambda c: c["cases"][CASE].update(source=[])),
        "differs from the manifest's",
    ),
    "case metadata": (lambda s: (s / CASE / "zarr.json").write_text("{"), "record is damaged"),
    "ome": (
        lambda s: edit_json(s / CASE / "zarr.json", lambda c: c["attributes"].pop("ome")),
        "OME metadata",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_the_case_named(store: Path, name: str) -> None:
    damage, message = FAULTS[name]
    damage(store)
    problems = verify(store)
    assert {problem.case_id for problem in problems} == {CASE}
    assert any(message in str(problem) for problem in problems), problems
    assert str(store / CASE) in str(problems[0])


def test_infinite_voxels_are_found(raw: Path, tmp_path: Path) -> None:
    write_nifti(image_path(raw, CASE), np.ones(SHAPES[1], np.float32))
    convert(raw, tmp_path / "store")
    set_voxels(tmp_path / "store", "0", (0, 1, 2, 3), np.inf)
    (problem,) = verify(tmp_path / "store")
    assert "1 voxels of the image are NaN or infinite" in problem.message


def test_duplicates_and_empty_labels_are_found(raw: Path, tmp_path: Path) -> None:
    shutil.copy(image_path(raw, "case_0"), image_path(raw, "case_3"))
    write_nifti(label_path(raw, "case_3"), np.zeros(SHAPES[0], np.uint8))
    describe(raw, numTraining=4)
    convert(raw, tmp_path / "store")
    messages = [(problem.case_id, problem.message) for problem in verify(tmp_path / "store")]
    assert messages == [
        ("case_3", "the label is empty"),
        ("case_3", "the image is the same as that of case_0"),
    ]


def test_a_folder_that_is_no_case_is_found(store: Path) -> None:
    shutil.copytree(store / CASE, store / "copy")
    (problem,) = verify(store)
    assert (problem.case_id, problem.path) == ("copy", str(store / "copy"))


def test_without_a_manifest_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no converted dataset"):
        verify(tmp_path)


def test_repair_redoes_the_faulty_case_alone(raw: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    own = [Split(train=("case_1", "case_2"), val=("case_0",))]
    digest = convert(raw, store, splits=own).digest
    shard = layout.shard_file(store / "case_1" / layout.IMAGE, 4)
    shard.write_bytes(shard.read_bytes()[:500])
    sound = layout.shard_file(store / "case_0" / layout.IMAGE, 4)
    before = sound.stat()
    assert [problem.case_id for problem in verify(store)] == ["case_1"]
    assert repair(store) == []
    assert (sound.stat().st_ino, sound.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert open_dataset(store).digest == digest
    assert verify(store) == []


def test_repair_finds_a_source_that_has_moved(raw: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    convert(raw, store)
    shutil.rmtree(store / "case_2")
    moved = raw.rename(tmp_path / "moved")
    with pytest.raises(DataError) as caught:
        repair(store)
    assert str(raw) in caught.value.where
    assert repair(store, source=moved) == []


def test_repair_reports_again_what_the_source_has(raw: Path, tmp_path: Path) -> None:
    for path in (image_path(raw, "case_1"), label_path(raw, "case_1")):
        shutil.copy(path, str(path).replace("case_1", "case_2"))
    convert(raw, tmp_path / "store")
    (problem,) = repair(tmp_path / "store")
    assert "the same as that of case_1" in problem.message


OLDER = "blosc-lz4-5-shuffle+crc32c"


@pytest.fixture
def older_store(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with the codec of earlier versions, and other chunks."""
    with monkeypatch.context() as earlier:
        earlier.setattr(layout, "CODEC", OLDER)
        earlier.setattr(layout, "CHUNK_DHW", (16, 32, 8))
        convert(raw, tmp_path / "store")
    return tmp_path / "store"


def test_repair_keeps_the_codec_and_chunks_that_a_store_was_begun_with(older_store: Path) -> None:
    before = open_dataset(older_store)
    crops = [before[case_id].read() for case_id in before.case_ids]
    metadata = [(older_store / case / "0" / "zarr.json").read_bytes() for case in before.case_ids]
    truncate(shard(older_store, layout.IMAGE, 4))
    assert [problem.case_id for problem in verify(older_store)] == [CASE]
    assert repair(older_store) == []
    after = open_dataset(older_store)
    assert (after.digest, after.codec, after.manifest.storage.chunk_DHW) == (
        before.digest, OLDER, (16, 32, 8),
    )  # fmt: skip
    for case_id, (image_CDHW, label_DHW), content in zip(
        after.case_ids, crops, metadata, strict=True
    ):
        np.testing.assert_array_equal(after[case_id].read()[0], image_CDHW)
        np.testing.assert_array_equal(after[case_id].read()[1], label_DHW)
        assert (older_store / case_id / "0" / "zarr.json").read_bytes() == content
    assert b'"cname": "lz4"' in metadata[0]


def test_a_conversion_goes_on_as_it_was_begun_and_overwriting_starts_anew(
    raw: Path, older_store: Path
) -> None:
    shutil.rmtree(older_store / CASE)
    assert convert(raw, older_store).converted == (CASE,)
    assert open_dataset(older_store).codec == OLDER
    assert len(convert(raw, older_store, overwrite=True).converted) == 3
    assert open_dataset(older_store).codec == layout.CODEC


def test_a_store_of_an_unknown_codec_is_not_repaired(older_store: Path) -> None:
    for path in (older_store / "zarr.json", older_store / "dataset.json"):
        path.write_text(path.read_text().replace(OLDER, "zstd-3"))
    edit_json(older_store / "dataset.json", lambda _: None)  # without the checksum
    shutil.rmtree(older_store / CASE)
    with pytest.raises(DataError, match="codec") as caught:
        repair(older_store)
    assert caught.value.got == "zstd-3"
    assert "--overwrite" in caught.value.remedy


def nested(path: Path) -> None:
    path.write_text('{"attributes": ' + "[" * 100_000 + "]" * 100_000 + "}")


ABSURD: dict[str, Callable[[Path], Any]] = {
    "nested": nested,
    "a list": lambda path: path.write_text("[1, 2]"),
    "a huge array": lambda path: edit_json(path, lambda c: c.update(shape=[10**6] * 4)),
    "a huge chunk": lambda path: edit_json(
        path, lambda c: c["codecs"][0]["configuration"].update(chunk_shape=[1, 10**9, 10**9, 1])
    ),
    "no chunk": lambda path: edit_json(
        path, lambda c: c["codecs"][0]["configuration"].update(chunk_shape=[0, 0, 0, 0])
    ),
    "a negative shape": lambda path: edit_json(path, lambda c: c.update(shape=[2, -1, 5, 5])),
    "a dtype of pointers": lambda path: edit_json(path, lambda c: c.update(data_type="object")),
    "an odd dtype": lambda path: edit_json(path, lambda c: c.update(data_type={"name": 7})),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_metadata_of_an_array_is_a_fault_of_its_case(store: Path, name: str) -> None:
    ABSURD[name](store / CASE / "0" / "zarr.json")
    assert {problem.case_id for problem in verify(store)} == {CASE}
    with pytest.raises(DataError, match="a stored case is damaged") as caught:
        open_dataset(store)[CASE].crop((0, 0, 0), (8, 8, 8))
    assert str(store / CASE / "0") in caught.value.where


@pytest.mark.parametrize("changes", [{"original_header": "AAAA"}, {"shape_CDHW": [2, 0, 5, -5]}])
def test_an_absurd_record_is_a_fault_of_its_case(store: Path, changes: dict[str, Any]) -> None:
    edit_records(store, **changes)
    assert {problem.case_id for problem in verify(store)} == {CASE}


def test_nested_metadata_of_a_case_is_its_fault_and_repaired(raw: Path, tmp_path: Path) -> None:
    convert(raw, tmp_path / "store")
    nested(tmp_path / "store" / CASE / "zarr.json")
    problems = verify(tmp_path / "store")
    assert {problem.case_id for problem in problems} == {CASE}
    assert "record is damaged" in str(problems[0])
    assert repair(tmp_path / "store") == []


def test_a_nested_manifest_or_header_is_named(raw: Path, store: Path) -> None:
    nested(store / "dataset.json")
    with pytest.raises(DataError, match="manifest of a dataset is damaged"):
        verify(store)
    edit_json(store / "zarr.json", lambda c: c["attributes"][layout.RECORD].update(chunk_DHW="x"))
    with pytest.raises(DataError, match="header of a store is damaged") as caught:
        convert(raw, store)
    assert caught.value.where == str(store / "zarr.json")
