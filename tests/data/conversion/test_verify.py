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
from segresmamba.data.conversion.earlier_versions import READER
from segresmamba.data.store import layout
from segresmamba.data.store.splits import Split
from segresmamba.data.volumes.itk import open_itk
from segresmamba.errors import DataError
from tests.data.raw import SHAPES, describe, image_path, label_path, write_nifti, write_series

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


@pytest.fixture
def dicom_store(tmp_path: Path) -> Path:
    """A store that an earlier version made from sound series: it records no reader."""
    source, store = tmp_path / "dicom", tmp_path / "dicom_store"
    for case in (CASE, "case_2"):
        rng = np.random.default_rng(int(case[-1]))
        write_series(source / case / "CT", rng.integers(1, 900, (20, 22, 12)).astype(np.int16))
        label = np.zeros((20, 22, 12), np.uint8)
        label[5:12, 5:12, 3:8] = 1
        affine = open_itk(source / case / "CT").affine
        write_nifti(source / case / "label.nii.gz", label, affine)
    describe(source, channel_names={"0": "CT"}, labels={"background": 0, "hip": 1})
    convert(source, store, format="dicom")
    edit_json(
        store / "dataset.json",
        lambda content: [record.pop("reader") for record in content["cases"].values()],
    )
    for case in (CASE, "case_2"):
        edit_json(
            store / case / "zarr.json",
            lambda content: content["attributes"][layout.RECORD].pop("reader"),
        )
    return store


def test_what_an_earlier_version_read_right_has_no_problems(dicom_store: Path) -> None:
    assert verify(dicom_store) == []


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"0020|0032": "-10\\{y}\\{two_z}.0"}, "on another grid than their headers say"),
        (
            {"0028|1053": "{slope}", "0028|1052": "0"},
            "a rescale of their own, and values were wrapped",
        ),
        ({"0020|0037": "{turn}"}, "should have been refused"),
    ],
)
def test_cases_that_an_earlier_version_misread_are_named(
    dicom_store: Path, changed: dict[str, str], fault: str
) -> None:
    """The source is replaced by one that the earlier version took for the other."""
    series = dicom_store.with_name("dicom") / CASE / "CT"
    voxels = np.stack(list(open_itk(series).planes()), axis=-1)
    shutil.rmtree(series)

    def tags(z: int) -> dict[str, str]:
        turn = "0.6\\0.8\\0\\-0.8\\0.6\\0" if z == 5 else "1\\0\\0\\0\\1\\0"
        words = {"y": z - 20, "two_z": 2 * z, "turn": turn, "slope": z + 1}
        return {key: value.format(**words) for key, value in changed.items()}

    write_series(series, voxels, tags)
    (problem,) = verify(dicom_store)
    assert problem.case_id == CASE
    assert problem.message.startswith("an earlier version misread the case: ")
    assert fault in problem.message


def test_a_misread_case_is_converted_again(dicom_store: Path) -> None:
    series = dicom_store.with_name("dicom") / CASE / "CT"
    voxels = np.stack(list(open_itk(series).planes()), axis=-1)
    shutil.rmtree(series)
    write_series(series, voxels, lambda z: {"0028|1053": str(z + 1), "0028|1052": "0"})
    assert len(verify(dicom_store)) == 1
    assert repair(dicom_store) == []
    records = open_dataset(dicom_store).manifest.cases
    assert [records[case].reader for case in (CASE, "case_2")] == [READER, 1]


def test_what_an_earlier_version_read_is_not_judged_without_its_source(
    dicom_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(dicom_store.with_name("dicom"))
    assert verify(dicom_store) == []
    assert "2 cases were read from DICOM by an earlier version" in caplog.text


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
    "a dtype that is no name": lambda path: edit_json(path, lambda c: c.update(data_type=", ")),
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


@pytest.mark.parametrize("channels", [-1, 5029199413383655])
def test_an_absurd_number_of_channels_is_a_fault_of_its_case(store: Path, channels: int) -> None:
    edit_records(store, shape_CDHW=[channels, 8, 8, 8])
    with pytest.raises(DataError, match="a stored case is damaged"):
        open_dataset(store)[CASE].crop((0, 0, 0), (8, 8, 8))


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
