"""Read boxes of a sharded array, with no layer between the file and the crop.

Zarr-python, and its Rust pipeline, spend more time around the chunks than on them (see
docs/performance.md). An array that `shard_writer` wrote is an ordinary Zarr v3 array, so they read
it too. Here the index of its one shard is read once. Blosc decodes the chunks that a box touches,
and NumPy copies them into place. There are no threads and no event loop, so a process may fork
after reading.
"""

from __future__ import annotations

import math
import struct
from itertools import product
from operator import itemgetter
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc

from segresmamba.data.store import layout
from segresmamba.data.store.files import Blob, Files
from segresmamba.storage.json_text import parse_json

blosc.use_threads = False  # reader processes run in parallel, so threads would compete with them

_CRC_BYTES = 4
_CRC_RESIDUE = 0x48674BC7
"""The CRC-32C of any bytes that end with their own little-endian CRC-32C."""
_BLOSC_MOST_BYTES = 2**31 - 1 - 16  # its sizes are int32, and its own header takes 16
_OVERHEAD_BYTES = 16 + _CRC_BYTES
"""By how much a chunk that cannot be compressed grows."""
_BLOSC_HEADER = struct.Struct("<4xI4xI")
"""Number of bytes of a chunk when decoded and when encoded."""


class ShardedArray:
    """An array that lies in one shard file.

    Args:
        files: The files of the store.
        name: Name of the array in the store.
        may_be_empty: Whether the array may hold only zeros. Zarr writes no file for such an array.

    Raises:
        OSError: If a file is missing or not readable, or the shard is too short.
        ValueError: If the metadata or the shard's index is damaged.
    """

    def __init__(self, files: Files, name: str, *, may_be_empty: bool = False) -> None:
        shape, self._dtype, self._chunk = _parse_metadata(files.read(f"{name}/zarr.json"))
        self._chunk_bytes = math.prod(self._chunk) * self._dtype.itemsize
        grid = tuple(-(-size // step) for size, step in zip(shape, self._chunk, strict=True))
        self._shard: Blob | None = None
        try:
            shard = files.blob(f"{name}/{layout.shard_name(len(grid))}")
            # A server is asked here for the first time.
            tail = shard.tail(16 * math.prod(grid) + _CRC_BYTES)
        except FileNotFoundError as error:
            if not may_be_empty:  # Zarr would take it for an array of zeros
                raise OSError("the shard file is missing") from error
            return
        self._shard = shard
        if google_crc32c.value(tail) != _CRC_RESIDUE:
            raise ValueError("the checksum of the shard's index does not fit: the file is damaged")
        self._index = np.frombuffer(tail[:-_CRC_BYTES], "<u8").reshape(*grid, 2)

    def read(self, start: tuple[int, ...], out: npt.NDArray[Any]) -> None:
        """Read a box that lies inside the array.

        Args:
            start: First element of the box.
            out: Array of the box's shape and of any dtype, filled with zeros. Chunks of zeros are
                not stored, and so not written to it.

        Raises:
            OSError: If a part of the shard cannot be read.
            ValueError, RuntimeError: If a chunk is damaged.
        """
        if self._shard is None:
            return
        touched = [
            _touched(first, size, step)
            for first, size, step in zip(start, out.shape, self._chunk, strict=True)
        ]
        entries = self._index[tuple(slice(axis[0][0], axis[-1][0] + 1) for axis in touched)]
        # In the order of the file, so that neighbours are read at once.
        chunks = sorted(
            (
                (offset, count, place)
                for (offset, count), place in zip(
                    entries.reshape(-1, 2).tolist(), product(*touched), strict=True
                )
                if count != layout.ABSENT
            ),
            key=itemgetter(0),
        )
        if not chunks:
            return
        # Memory is taken for what is read, so the index must not say how much.
        for _, count, _ in chunks:
            if not _OVERHEAD_BYTES <= count <= self._chunk_bytes + _OVERHEAD_BYTES:
                raise ValueError(f"the shard's index names a chunk of {count} bytes: it is damaged")
        scratch = np.empty(self._chunk, self._dtype)
        parts = self._shard.read_ranges([(offset, count) for offset, count, _ in chunks])
        for part, (_, count, place) in zip(parts, chunks, strict=True):
            # Blosc decodes most flipped bits into other voxels without an error.
            if google_crc32c.value(part) != _CRC_RESIDUE:
                raise ValueError("the checksum of a chunk does not fit: the file is damaged")
            # Blosc trusts the sizes in the header, so they are compared with the known ones.
            if _BLOSC_HEADER.unpack_from(part.data) != (self._chunk_bytes, count - _CRC_BYTES):
                raise ValueError("a chunk's header is damaged")
            blosc.decompress(part, scratch)
            _, source, target = zip(*place, strict=True)
            out[target] = scratch[source]


def _touched(first: int, size: int, step: int) -> list[tuple[int, slice, slice]]:
    """The chunks that a box touches along one axis.

    Returns:
        For each chunk its number, the part of it that is in the box, and that part's place in the
        box.
    """
    last = first + size
    return [
        (
            number,
            slice(max(first - number * step, 0), min(last - number * step, step)),
            slice(max(number * step - first, 0), min((number + 1) * step - first, size)),
        )
        for number in range(first // step, -(-last // step))
    ]


def _parse_metadata(metadata: bytes) -> tuple[tuple[int, ...], np.dtype[Any], tuple[int, ...]]:
    """Shape, dtype and inner chunk of an array. Another coding than `shard_writer`'s is refused."""
    array = parse_json(metadata)
    try:
        (sharding,) = array["codecs"]
        settings = sharding["configuration"]
        found = [codec["name"] for codec in settings["codecs"] + settings["index_codecs"]]
        fill, shape, chunk = array["fill_value"], array["shape"], settings["chunk_shape"]
        dtype = np.dtype(array["data_type"]).newbyteorder("<")
    except (KeyError, TypeError, AttributeError, SyntaxError) as error:  # numpy parses a type
        raise ValueError(f"the array's metadata is damaged: {error!r}") from error
    if found != ["bytes", "blosc", "crc32c", "bytes", "crc32c"] or fill != 0:
        raise ValueError(f"the array is coded by {found}, not as `segresmamba convert` does it")
    sound = isinstance(shape, list) and isinstance(chunk, list) and len(shape) == len(chunk)
    if dtype.kind not in "iuf":
        raise ValueError(f"the array's voxels are of the type {dtype}")
    if not sound or not all(type(size) is int and size > 0 for size in shape + chunk):
        raise ValueError(f"the array has the shape {shape} and chunks of {chunk}")
    if math.prod(chunk) * dtype.itemsize > _BLOSC_MOST_BYTES:
        raise ValueError(f"no chunk can be as large as {chunk}")
    return tuple(shape), dtype, tuple(chunk)
