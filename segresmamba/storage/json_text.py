"""JSON for people to read, and JSON that others may have written or that is damaged."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def parse_json(content: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: If it is not JSON, or is nested too deeply to be read.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


def json_bytes(path: Path) -> bytes:
    """The bytes of a JSON file, without the byte-order mark that editors of Windows put first.

    Raises:
        OSError: If the file cannot be read.
    """
    return path.read_bytes().removeprefix(codecs.BOM_UTF8)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with an entry on each line."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
