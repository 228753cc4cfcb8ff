"""Where things lie in a store, and how Zarr writes them.

    <store>/dataset.json                    manifest (see `manifest`)
    <store>/<case>/zarr.json                OME metadata and the case's record
    <store>/<case>/0                        image (C, D, H, W), int16, float16 or float32
    <store>/<case>/labels/segmentation/0    label (D, H, W), uint8 or int16
    <store>/<case>/positions                voxels of each class (n, 3), where there are any
    <store>/<case>/reference                label as its file has it, turned to RAS, where a policy
                                            changed the grid

Every array is one shard file, so a case takes few inodes, with inner chunks of 32^3 voxels of one
channel, so a crop reads little more than itself. Each chunk carries a CRC-32C, and so does the
index of the shard. `verify` checks all of them; crops check that of the index, which finds
truncation but not every flipped bit. Chunk and codec are chosen by docs/performance.md; a store
keeps those that it was begun with.
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
_BLOSC = re.compile(r"blosc-(lz4|lz4hc|zstd)-([1-9])-(shuffle|bitshuffle)\+crc32c")


def shard_name(dimensions: int) -> str:
    """The one file that holds an array's voxels; Zarr writes none for an array of zeros."""
    return "c/" + "/".join("0" * dimensions)


def shard_file(array: Path, dimensions: int) -> Path:
    """The same, of an array in a folder."""
    return array / shard_name(dimensions)


def is_known(codec: str) -> bool:
    """Whether arrays can be written with it; Blosc itself says which codec a chunk is read with."""
    return _BLOSC.fullmatch(codec) is not None


def compressors(codec: str) -> list[Any]:
    """Those that a codec like `CODEC` names."""
    from zarr.codecs import BloscCodec, Crc32cCodec

    known = _BLOSC.fullmatch(codec)
    assert known is not None, codec
    name, level, shuffle = known.groups()
    settings: dict[str, Any] = {"cname": name, "clevel": int(level), "shuffle": shuffle}
    return [BloscCodec(**settings), Crc32cCodec()]


def checking_pipeline() -> Any:
    """Zarr's settings for arrays opened inside, whatever the user's are: checksums are checked."""
    import zarr

    return zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"})
