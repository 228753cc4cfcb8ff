"""Checks of what others may have written: names that become paths, sizes in headers."""

from __future__ import annotations

from math import prod
from pathlib import PurePosixPath

RESERVED_NAMES = frozenset({"zarr.json", "dataset.json"})
"""File names at the top of a store, which no case may have."""
_DEFLATE_RATIO = 1032
"""How many times longer than itself the content of a gzip file can be (zlib's documentation)."""


def is_case_id(name: str) -> bool:
    """Whether a name can be that of one folder in a store."""
    unsafe = set(name) & set("/\\:\0\n\r\t")
    return bool(name) and not unsafe and name[0] != "." and name not in RESERVED_NAMES


def stays_inside(name: str) -> bool:
    """Whether a path with slashes leads to a place below the folder that it starts from."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and not set(name) & set("\\\0")
        and (".." not in path.parts)
    )


def require_voxels(
    size: int, shape: tuple[int, ...], itemsize: int, *, offset: int = 0, packed: bool
) -> None:
    """Refuse a header whose voxels cannot all be in its file, before memory is taken for them.

    Args:
        size: Bytes of the file, or of the files.
        shape: What its header says.
        itemsize: Bytes of one voxel, at least.
        offset: Where the voxels begin.
        packed: Whether the file may be compressed (deflate).

    Raises:
        ValueError: If the shape is not one of a volume.
        EOFError: If the file is too short for it.
    """
    if not shape or min(shape) < 1:
        raise ValueError(f"its header says that its shape is {shape}")
    most = size * _DEFLATE_RATIO if packed else size
    if (needed := offset + prod(shape) * itemsize) > most:
        raise EOFError(
            f"its header says {needed} bytes, for the shape {shape}; a file of {size} bytes holds "
            f"at most {most}"
        )
