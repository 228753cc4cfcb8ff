"""Read boxes of a sharded array, with nothing between the file and the crop.

Zarr-python, and its Rust pipeline, spend more time around the chunks than in them (see
docs/performance.md). What `writer` writes is an ordinary Zarr v3 array that they read too; here its
one shard's index is read once, and the chunks that a box touches are decoded by Blosc and copied to
their place. There are no threads and no event loop, so a process may fork after reading.
"""

from __future__ import annotations

import json
import math
import struct
from itertools import product
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc

from segresmamba.data.store import layout
from segresmamba.data.store.files import Blob, Files

blosc.use_threads = False  # readers, not threads, are what runs in parallel

_ABSENT = 2**64 - 1  # offset and length of a chunk of zeros, which is not stored
_CRC_BYTES = 4
_BLOSC_HEADER = struct.Struct("<4xI4xI")  # bytes decoded and encoded


class ShardedArray:
    """An array that lies in one shard file.

    Args:
        files: Of the store.
        name: Of the array in it.
        may_be_empty: Whether it may be of zeros alone, for which Zarr writes no file.

    Raises:
        OSError: If a file is not there or not readable, or the shard is too short.
        ValueError: If the metadata or the shard's index is damaged.
    """

    def __init__(self, files: Files, name: str, *, may_be_empty: bool = False) -> None:
        self.shape, self.dtype, self._chunk = _layout(files.read(f"{name}/zarr.json"))
        self._scratch_bytes = math.prod(self._chunk) * self.dtype.itemsize
        grid = tuple(-(-size // step) for size, step in zip(self.shape, self._chunk, strict=True))
        self._shard: Blob | None = None
        try:
            self._shard = files.blob(f"{name}/{layout.shard_name(len(grid))}")
        except FileNotFoundError as error:
            if not may_be_empty:  # Zarr would take it for an array of zeros
                raise OSError("the shard file is missing") from error
            self._index = np.full((*grid, 2), _ABSENT, np.uint64)
        else:
            self._index = _index(self._shard.tail(16 * math.prod(grid) + _CRC_BYTES), grid)

    def read(self, start: tuple[int, ...], out: npt.NDArray[Any]) -> None:
        """Read a box that lies inside the array.

        Args:
            start: Its first element.
            out: Of the box's shape and any dtype; filled with zeros, as fresh or cleared memory is
                anyway, so that what is absent need not be written.

        Raises:
            OSError: If a part of the shard cannot be read.
            ValueError, RuntimeError: If a chunk is damaged.
        """
        touched = [
            _touched(first, size, step)
            for first, size, step in zip(start, out.shape, self._chunk, strict=True)
        ]
        spans = self._index[tuple(slice(axis[0][0], axis[-1][0] + 1) for axis in touched)]
        chunks = sorted(
            (offset, count, place)
            for (offset, count), place in zip(
                spans.reshape(-1, 2).tolist(), product(*map(range, spans.shape[:-1])), strict=True
            )
            if count != _ABSENT
        )
        if self._shard is None or not chunks:
            return
        scratch = np.empty(self._chunk, self.dtype)
        parts = self._shard.spans([(offset, count) for offset, count, _ in chunks])
        for part, (_, count, place) in zip(parts, chunks, strict=True):
            encoded = part[: count - _CRC_BYTES]
            if _BLOSC_HEADER.unpack_from(encoded) != (self._scratch_bytes, len(encoded)):
                raise ValueError("a chunk's header is damaged")
            blosc.decompress(encoded, scratch)
            axes = [axis[number] for axis, number in zip(touched, place, strict=True)]
            source, target = (tuple(axis[side] for axis in axes) for side in (1, 2))
            out[target] = scratch[source]


def _touched(first: int, size: int, step: int) -> list[tuple[int, slice, slice]]:
    """Along one axis: numbers of the chunks, what of each is in the box, and where in the box."""
    last = first + size
    return [
        (
            number,
            slice(max(first - number * step, 0), min(last - number * step, step)),
            slice(max(number * step - first, 0), min((number + 1) * step - first, size)),
        )
        for number in range(first // step, -(-last // step))
    ]


def _layout(metadata: bytes) -> tuple[tuple[int, ...], np.dtype[Any], tuple[int, ...]]:
    """Shape, dtype and inner chunk of an array that is stored as `writer` does it."""
    array = json.loads(metadata)
    (sharding,) = array["codecs"]
    settings = sharding["configuration"]
    found = [codec["name"] for codec in settings["codecs"] + settings["index_codecs"]]
    if found != ["bytes", "blosc", "crc32c", "bytes", "crc32c"] or array["fill_value"] != 0:
        raise ValueError(f"the array is coded by {found}, not as `segresmamba convert` does it")
    shape, chunk = tuple(array["shape"]), tuple(settings["chunk_shape"])
    return shape, np.dtype(array["data_type"]).newbyteorder("<"), chunk


def _index(tail: bytes, grid: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    content, checksum = tail[:-_CRC_BYTES], tail[-_CRC_BYTES:]
    if google_crc32c.value(content).to_bytes(_CRC_BYTES, "little") != checksum:
        raise ValueError("the checksum of the shard's index does not fit: the file is damaged")
    return np.frombuffer(content, "<u8").reshape(*grid, 2)
