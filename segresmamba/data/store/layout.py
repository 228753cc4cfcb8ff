"""The layout of a store, and the codec that Zarr writes it with.

    <store>/dataset.json                    manifest (see `manifest`)
    <store>/<case>/zarr.json                OME metadata and the case's record
    <store>/<case>/0                        image (C, D, H, W), int16, float16 or float32
    <store>/<case>/labels/segmentation/0    label (D, H, W), uint8 or int16
    <store>/<case>/positions                voxels of each class (n, 3), if the case has any class
    <store>/<case>/reference                label on the grid of its file, turned to RAS, if a
                                            policy changed the grid

Every array is one shard file, so a case takes few inodes. Its inner chunks hold 32^3 voxels of one
channel, so a crop reads little more than itself. Each chunk carries a CRC-32C, and so does the
index of the shard. Every read checks those of the chunks that it touches and that of the index.
Chunk and codec were chosen by the measurements in docs/performance.md. A store keeps those that it
was begun with.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

IMAGE = "0"
LABEL_NAME = "segmentation"
LABEL = f"labels/{LABEL_NAME}/0"
POSITIONS = "positions"
REFERENCE = "reference"
RECORD = "segresmamba"
CHUNK_DHW = (32, 32, 32)
POSITIONS_CHUNK = 4096
CODEC = "blosc-lz4hc-5-shuffle+crc32c"
ABSENT = 2**64 - 1
"""Offset and length in a shard's index of a chunk of zeros, which is not stored (Zarr's value)."""
_BLOSC = re.compile(r"blosc-(lz4|lz4hc|zstd)-([1-9])-(shuffle|bitshuffle)\+crc32c")


def shard_name(dimensions: int) -> str:
    """The one file that holds an array's voxels. Zarr writes none for an array of zeros."""
    return "c/" + "/".join("0" * dimensions)


def shard_file(array: Path, dimensions: int) -> Path:
    """The shard file of an array in a local folder."""
    return array / shard_name(dimensions)


def is_known(codec: str) -> bool:
    """Whether this version can write arrays with the codec.

    Reading does not ask: each chunk's own Blosc header names the compressor.
    """
    return _BLOSC.fullmatch(codec) is not None


def compressors(codec: str) -> list[Any]:
    """Zarr's compressors for a codec name like `CODEC`."""
    from zarr.codecs import BloscCodec, Crc32cCodec

    known = _BLOSC.fullmatch(codec)
    assert known is not None, codec
    name, level, shuffle = known.groups()
    settings: dict[str, Any] = {"cname": name, "clevel": int(level), "shuffle": shuffle}
    return [BloscCodec(**settings), Crc32cCodec()]


def checking_pipeline() -> Any:
    """A context in which Zarr opens arrays with the pipeline that checks checksums.

    The user's Zarr configuration may name another pipeline.
    """
    import zarr

    return zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"})
