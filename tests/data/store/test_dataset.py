from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segresmamba.data import Dataset, Policy, convert, open_dataset
from segresmamba.data.store import layout
from segresmamba.data.store.files import Blob, Buffer, ByteRange
from segresmamba.data.store.local_files import LocalFiles
from segresmamba.errors import DataError

BOX = ((1, 2, 3), (30, 29, 28))
"""Lies inside the first inner chunk."""


class CountingFiles(LocalFiles):
    """Counts the bytes that are read from shards."""

    read_bytes = 0

    def blob(self, name: str) -> Blob:
        files, blob = self, super().blob(name)

        class Counting(Blob):
            def tail(self, count: int) -> bytes:
                return blob.tail(count)  # once for each array

            def read_ranges(self, ranges: Sequence[ByteRange]) -> Iterator[Buffer]:
                files.read_bytes += sum(count for _, count in ranges)
                return blob.read_ranges(ranges)

        return Counting()


def shard_of(store: Path, case_id: str, array: str) -> Path:
    return layout.shard_file(store / case_id / array, 4 if array == layout.IMAGE else 3)


def chunk_ranges(shard: Path, chunks: int) -> list[ByteRange]:
    """Places of the inner chunks in a shard. At its end are (offset, length) pairs and a CRC."""
    index = np.frombuffer(shard.read_bytes()[-(16 * chunks + 4) : -4], "<u8").reshape(-1, 2)
    return [(int(offset), int(length)) for offset, length in index]


def test_opening_reads_the_manifest_alone(store: Path) -> None:
    for case in store.glob("case*"):
        shutil.rmtree(case)
    dataset = open_dataset(store)
    case = dataset["case_0"]
    assert (len(dataset), case.shape_DHW) == (3, (34, 50, 40))
    assert dataset.labels == {"background": 0, "ball": 1, "box": 2}
    with pytest.raises(DataError, match="damaged"):
        case.crop(*BOX)  # only now is anything opened


def test_a_crop_is_what_the_volume_shows_there(sound_store: Path) -> None:
    case = open_dataset(sound_store)["case_2"]
    image_CDHW, label_DHW = case.read()
    image, label = case.crop((2, 5, 1), (31, 20, 32))
    np.testing.assert_array_equal(image, image_CDHW[:, 2:33, 5:25, 1:33])
    np.testing.assert_array_equal(image, case.open_image()[:, 2:33, 5:25, 1:33])  # as Zarr reads it
    np.testing.assert_array_equal(label, label_DHW[2:33, 5:25, 1:33])
    np.testing.assert_array_equal(label, case.open_label()[2:33, 5:25, 1:33])


def test_a_crop_reads_the_chunks_that_it_touches_alone(store: Path) -> None:
    """All other chunks are overwritten: the crop comes out the same, a larger one does not."""
    expected, _ = open_dataset(store)["case_0"].crop(*BOX)
    shard = shard_of(store, "case_0", layout.IMAGE)
    ranges = chunk_ranges(shard, chunks=2 * 2 * 2 * 2)
    content = bytearray(shard.read_bytes())
    for offset, length in (*ranges[1:8], *ranges[9:]):
        content[offset : offset + length] = bytes(length)
    shard.write_bytes(content)
    case = open_dataset(store)["case_0"]
    image, _ = case.crop(*BOX)
    np.testing.assert_array_equal(image, expected)
    with pytest.raises(DataError, match="damaged"):
        case.crop((0, 0, 0), (33, 33, 33))


def test_a_crop_reads_as_many_bytes_as_its_chunks_have(sound_store: Path) -> None:
    files = CountingFiles(sound_store)
    case = Dataset(files, open_dataset(sound_store).manifest)["case_0"]
    chunks = 2 * 2 * 2
    image = chunk_ranges(shard_of(sound_store, "case_0", layout.IMAGE), 2 * chunks)
    label = chunk_ranges(shard_of(sound_store, "case_0", layout.LABEL), chunks)
    case.crop(*BOX)
    assert files.read_bytes == image[0][1] + image[chunks][1] + label[0][1]


def test_one_position_is_a_row_of_all(sound_store: Path) -> None:
    case = open_dataset(sound_store)["case_1"]
    for value in case.class_values:
        positions = case.class_positions(value)
        assert positions.shape == (case.record.class_positions[value], 3)
        for row in (0, len(positions) - 1):
            assert case.class_position(value, row) == tuple(positions[row])
    assert case.class_positions(7).shape == (0, 3)


def test_a_dataset_travels_to_other_processes_unread(sound_store: Path) -> None:
    dataset = open_dataset(sound_store)
    dataset["case_0"].read()
    content = pickle.dumps(dataset)
    assert len(content) < 20_000
    image, _ = pickle.loads(content)["case_0"].crop(*BOX)
    np.testing.assert_array_equal(image, dataset["case_0"].crop(*BOX)[0])


@pytest.mark.parametrize("array", [layout.IMAGE, layout.LABEL])
@pytest.mark.parametrize("kept", [0, 0.5, -1])
def test_a_truncated_shard_is_found_by_any_crop(store: Path, array: str, kept: Any) -> None:
    shard = shard_of(store, "case_1", array)
    content = shard.read_bytes()
    shard.write_bytes(content[: int(kept * len(content)) if kept >= 0 else kept])
    with pytest.raises(DataError, match="damaged") as caught:
        open_dataset(store)["case_1"].crop(*BOX)
    assert "case_1" in caught.value.where
    assert "segresmamba verify" in caught.value.remedy


@pytest.mark.parametrize("array", [layout.IMAGE, layout.LABEL, layout.POSITIONS])
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_found_by_the_read_that_touches_it(
    store: Path, array: str, place: float
) -> None:
    dimensions = {layout.IMAGE: 4, layout.LABEL: 3, layout.POSITIONS: 2}[array]
    shard = layout.shard_file(store / "case_1" / array, dimensions)
    content = bytearray(shard.read_bytes())
    content[int(place * len(content))] ^= 4
    shard.write_bytes(content)
    case = open_dataset(store)["case_1"]
    with pytest.raises(DataError, match="damaged") as caught:
        case.class_positions(1) if array == layout.POSITIONS else case.read()
    assert caught.value.where == str(store / "case_1" / array)
    assert "checksum" in caught.value.got


def test_a_missing_shard_is_not_taken_for_zeros(store: Path) -> None:
    shard = shard_of(store, "case_1", layout.LABEL)
    shard.unlink()
    with pytest.raises(DataError, match="missing") as caught:
        open_dataset(store)["case_1"].crop(*BOX)
    assert caught.value.where == str(store / "case_1" / layout.LABEL)


def test_a_missing_reference_is_not_taken_for_zeros(raw: Path, tmp_path: Path) -> None:
    store = tmp_path / "cropped"
    convert(raw, store, policy=Policy(spacing=(2.0, 2.0, 2.0)))
    case = open_dataset(store)["case_1"]
    assert np.asarray(case.reference().dataobj).any()
    shard_of(store, "case_1", layout.REFERENCE).unlink()
    with pytest.raises(DataError, match="missing") as caught:
        open_dataset(store)["case_1"].reference()
    assert caught.value.where == str(store / "case_1" / layout.REFERENCE)


def test_an_unknown_case_is_refused(sound_store: Path) -> None:
    with pytest.raises(DataError, match="no such case") as caught:
        open_dataset(sound_store)["case_7"]
    assert "case_0, case_1, case_2" in caught.value.remedy
