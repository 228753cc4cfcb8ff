"""Checksums, by which a reader notices that bytes are not those that were written.

CRC-32C finds every single flipped bit and every damaged run of up to 32 bits; other damage goes
unnoticed once in four billion times. The processor computes it faster than a disk delivers. It
guards against accidents, not against people.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import google_crc32c

_BLOCK = 1 << 20


def digest_of(parts: Iterable[Any]) -> str:
    """The digest of bytes that come in parts, each of them bytes or an array of bytes."""
    crc = 0
    for part in parts:
        crc = google_crc32c.extend(crc, part)
    return f"crc32c:{crc:08x}"


def file_digest(path: Path) -> str:
    """The digest of a file's bytes.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return digest_of(iter(lambda: file.read(_BLOCK), b""))


def json_digest(content: object) -> str:
    """The digest of what a JSON file says, however it is laid out."""
    return digest_of([json.dumps(content, sort_keys=True).encode()])
