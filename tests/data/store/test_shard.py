from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec

from segresmamba.data.store.local_files import LocalFiles
from segresmamba.data.store.remote_files import RemoteFiles
from segresmamba.data.store.shard import ShardedArray


def write(folder: Path, data: Any, chunk: tuple[int, ...], codec: Any = "lz4hc") -> None:
    array = zarr.create_array(
        folder / "array",
        shape=data.shape,
        dtype=data.dtype,
        chunks=chunk,
        shards=tuple(-(-size // step) * step for size, step in zip(data.shape, chunk, strict=True)),
        compressors=[BloscCodec(cname=codec, clevel=5, shuffle="shuffle"), Crc32cCodec()],
        overwrite=True,
    )
    array[...] = data


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=st.data())
def test_a_box_of_any_array_is_what_zarr_reads(case: st.DataObject, tmp_path: Path) -> None:
    draw = case.draw
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=3, max_size=4)))
    chunk = tuple(draw(st.integers(1, 5)) for _ in shape)
    dtype = draw(st.sampled_from(["uint8", "int16", "float16", "float32"]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    data = (rng.integers(0, 50, shape) * (rng.random(shape) < 0.3)).astype(dtype)
    codec = draw(st.sampled_from(["lz4", "lz4hc", "zstd"]))
    write(tmp_path, data, chunk, codec)
    start = tuple(draw(st.integers(0, size - 1)) for size in shape)
    sizes = tuple(draw(st.integers(1, s - f)) for s, f in zip(shape, start, strict=True))
    out = np.zeros(sizes, draw(st.sampled_from([dtype, "float32"])))
    ShardedArray(LocalFiles(tmp_path), "array", may_be_empty=True).read(start, out)
    box = tuple(slice(first, first + size) for first, size in zip(start, sizes, strict=True))
    np.testing.assert_array_equal(out, zarr.open_array(tmp_path / "array", mode="r")[box])


def test_another_coding_is_refused_by_name(tmp_path: Path) -> None:
    zarr.create_array(
        tmp_path / "array", shape=(4, 4), dtype="uint8", chunks=(2, 2), shards=(4, 4)
    )[...] = 1
    with pytest.raises(ValueError, match="zstd"):
        ShardedArray(LocalFiles(tmp_path), "array")


def test_a_damaged_index_is_found_by_its_checksum(tmp_path: Path) -> None:
    write(tmp_path, np.ones((2, 4, 4, 4), np.int16), (2, 4, 4, 4))
    (shard,) = [path for path in (tmp_path / "array").rglob("c/**/*") if path.is_file()]
    content = bytearray(shard.read_bytes())
    content[-8] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        ShardedArray(LocalFiles(tmp_path), "array")


def test_every_flipped_bit_of_a_chunk_is_found(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 9, (2, 6, 6, 6)).astype(np.int16)
    write(tmp_path, data, (1, 6, 6, 6))
    (shard,) = [path for path in (tmp_path / "array").rglob("c/**/*") if path.is_file()]
    sound = shard.read_bytes()
    array = ShardedArray(LocalFiles(tmp_path), "array")  # the index stays sound
    out = np.zeros_like(data)
    array.read((0, 0, 0, 0), out)
    np.testing.assert_array_equal(out, data)
    with shard.open("r+b") as file:
        for bit in range(8 * (len(sound) - 2 * 16 - 4)):
            changed = sound[bit // 8] ^ 1 << bit % 8
            os.pwrite(file.fileno(), bytes([changed]), bit // 8)
            with pytest.raises(ValueError, match="checksum of a chunk"):
                array.read((0, 0, 0, 0), out)
            os.pwrite(file.fileno(), sound[bit // 8 : bit // 8 + 1], bit // 8)


@pytest.mark.parametrize("count", [1 << 62, 0, 7])
def test_an_index_with_absurd_sizes_is_refused_before_memory_is_taken(
    tmp_path: Path, count: int
) -> None:
    write(tmp_path, np.ones((2, 4, 4, 4), np.int16), (2, 4, 4, 4))
    (shard,) = [path for path in (tmp_path / "array").rglob("c/**/*") if path.is_file()]
    content = bytearray(shard.read_bytes())
    struct.pack_into("<QQ", content, len(content) - 20, 0, count)
    content[-4:] = google_crc32c.value(bytes(content[-20:-4])).to_bytes(4, "little")
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=f"a chunk of {count} bytes"):
        ShardedArray(LocalFiles(tmp_path), "array").read((0, 0, 0, 0), np.zeros((2, 4, 4, 4)))


@pytest.mark.parametrize("remote", [False, True])
def test_an_empty_array_needs_no_file(tmp_path: Path, remote: bool) -> None:
    write(tmp_path, np.zeros((2, 4, 4, 4), np.int16), (1, 2, 2, 2))
    shutil.rmtree(tmp_path / "array" / "c", ignore_errors=True)
    files = RemoteFiles(f"file://{tmp_path}") if remote else LocalFiles(tmp_path)
    out = np.zeros((2, 3, 3, 3))
    ShardedArray(files, "array", may_be_empty=True).read((0, 1, 1, 1), out)
    assert not out.any()
    with pytest.raises(OSError, match="missing"):
        ShardedArray(files, "array")
