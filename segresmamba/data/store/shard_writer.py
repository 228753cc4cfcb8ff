"""Write an array's shard chunk by chunk.

Zarr writes a shard in one piece: it holds the voxels, their encoded bytes and the file's content at
once, four times the size of the array. Here one row of chunks at a time is encoded and appended,
and only the place of each chunk stays in memory. Zarr encodes the chunks, and the format is Zarr's:

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
        group: The group, open for writing.
        folder: The group's folder.
        name: Name of the array in the group.
        data: The array's content.
        chunk: Shape of the inner chunks.
        axes: Names of the dimensions.
        codec: A name like `layout.CODEC`.
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
    index = np.full((*counts, 2), layout.ABSENT, np.uint64)
    path = layout.shard_file(folder / name, data.ndim)
    path.parent.mkdir(parents=True)
    # Encoding several chunks at once would take memory for each.
    one_by_one = zarr.config.set({"async.concurrency": 1})
    with path.open("wb") as file, layout.checking_pipeline(), one_by_one:
        for place, encoded in _encoded_chunks(data, chunk, array.compressors):
            index[place] = file.tell(), len(encoded)
            file.write(encoded)
        for content in _encode(index, index.shape, (Crc32cCodec(),)).values():
            file.write(content)
    if (index == layout.ABSENT).all():
        path.unlink()  # Zarr writes no file for an array of zeros either


def _encoded_chunks(
    data: npt.NDArray[Any], chunk: tuple[int, ...], compressors: tuple[Any, ...]
) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Yield the grid position and the bytes of each chunk that is not all zeros."""
    # A row is the chunks along the last axis.
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
    """The chunks of an array as Zarr writes them, by their grid position."""
    # A small array in memory lets Zarr's public interface do the encoding. Zarr leaves out chunks
    # of zeros.
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
