"""Write an array's shard chunk by chunk.

Zarr writes a shard in one piece: it holds the voxels, their encoded bytes and the file's content at
once, four times the size of the array. Here a row of chunks is encoded at a time and appended; what
is left in memory is where each chunk lies. Encoding is Zarr's own, so is the format:

    encoded chunks, in any order | index: (offset, bytes) of each, uint64 | CRC-32C of the index
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.buffer import Buffer
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from segresmamba.data.store import layout

_ABSENT = np.iinfo(np.uint64).max  # of a chunk that holds nothing but zeros


def write_array(
    group: zarr.Group,
    folder: Path,
    name: str,
    data: npt.NDArray[Any],
    chunk: tuple[int, ...],
    axes: tuple[str, ...],
    codec: str,
) -> None:
    """Add an array of one shard to a group in a local folder.

    Args:
        group: The group.
        folder: Where it lies.
        name: Of the array in it.
        data: Its content.
        chunk: Shape of the inner chunks.
        axes: Names of the dimensions.
        codec: See `layout.CODEC`.
    """
    counts = tuple(-(-size // step) for size, step in zip(data.shape, chunk, strict=True))
    array = group.create_array(
        name,
        shape=data.shape,
        dtype=data.dtype,
        chunks=chunk,
        shards=tuple(count * step for count, step in zip(counts, chunk, strict=True)),
        compressors=layout.compressors(codec),
        dimension_names=axes,
    )
    index = np.full((*counts, 2), _ABSENT, np.uint64)
    path = layout.shard_file(folder / name, data.ndim)
    path.parent.mkdir(parents=True)
    # Encoding many chunks at once would take memory for each thread.
    one_by_one = zarr.config.set({"async.concurrency": 1})
    with path.open("wb") as file, layout.checking_pipeline(), one_by_one:
        for place, encoded in _encoded_chunks(data, chunk, array.compressors):
            index[place] = file.tell(), len(encoded)
            file.write(encoded)
        for content in _encode(index, index.shape, (Crc32cCodec(),)).values():
            file.write(content)
    if (index == _ABSENT).all():
        path.unlink()  # as Zarr does: all zeros


def _encoded_chunks(
    data: npt.NDArray[Any], chunk: tuple[int, ...], compressors: tuple[Any, ...]
) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Each chunk's place in the grid of chunks and its bytes; none for chunks of zeros."""
    # A row of chunks at a time: those along the last axis.
    *steps, _ = chunk
    for row in np.ndindex(
        *(-(-size // step) for size, step in zip(data.shape, steps, strict=False))
    ):
        box = tuple(
            slice(number * step, (number + 1) * step)
            for number, step in zip(row, steps, strict=True)
        )
        for (*_, last), encoded in _encode(data[box], chunk, compressors).items():
            yield (*row, last), encoded


def _encode(
    data: npt.NDArray[Any], chunk: tuple[int, ...], compressors: tuple[Any, ...]
) -> dict[tuple[int, ...], bytes]:
    """The chunks of an array as Zarr writes them, by their place."""
    content: dict[str, Buffer] = {}
    array = zarr.create_array(
        MemoryStore(content),
        shape=data.shape,
        dtype=data.dtype,
        chunks=chunk,
        compressors=compressors,
    )
    array[...] = data
    return {
        tuple(int(part) for part in key.split("/")[1:]): value.to_bytes()
        for key, value in content.items()
        if key.startswith("c/")
    }
