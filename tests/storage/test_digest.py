from __future__ import annotations

from pathlib import Path

import numpy as np

from segresmamba.storage.digest import digest_of, file_digest, json_digest

# The check value of CRC-32C in the catalogues of checksums.
DIGITS, DIGEST = b"123456789", "crc32c:e3069283"


def test_a_digest_does_not_depend_on_how_the_bytes_come(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DIGITS)
    array = np.frombuffer(DIGITS[4:], np.uint8)
    assert file_digest(tmp_path / "file") == digest_of([DIGITS[:4], array]) == DIGEST


def test_a_file_of_several_blocks_is_read_whole(tmp_path: Path) -> None:
    content = bytes(range(256)) * (5 << 12)  # 5 MiB
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == digest_of([content])


def test_the_digest_of_json_is_that_of_its_content() -> None:
    assert json_digest({"a": 1, "b": [2]}) == json_digest({"b": [2], "a": 1})
    assert json_digest({"a": 1}) != json_digest({"a": 2})
