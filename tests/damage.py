"""What happens to files: a bit flips, the end is cut off, they are lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def lose(path: Path) -> None:
    """Delete a file."""
    path.unlink()


def flips(path: Path, count: int) -> Iterator[str]:
    """Flip one bit after another at random places of a file, each in the file as it was."""
    good, rng = path.read_bytes(), random.Random(0)
    for _ in range(count):
        at, bit = rng.randrange(len(good)), rng.randrange(8)
        content = bytearray(good)
        content[at] ^= 1 << bit
        path.unlink()  # nothing may have the file mapped
        path.write_bytes(content)
        yield f"bit {bit} of byte {at}"
    path.write_bytes(good)


def cuts(path: Path, count: int) -> Iterator[str]:
    """Cut a file off at one random place after another, each in the file as it was."""
    good, rng = path.read_bytes(), random.Random(0)
    for _ in range(count):
        length = rng.randrange(len(good))
        path.unlink()
        path.write_bytes(good[:length])
        yield f"after {length} bytes"
    path.write_bytes(good)
