from __future__ import annotations

import pytest

from segresmamba.storage.json_text import parse_json


def test_json_is_parsed_from_text_and_bytes() -> None:
    assert parse_json('{"a": [1]}') == parse_json(b'{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "", "{", b"\xff"])
def test_what_cannot_be_parsed_is_a_value_error(content: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_json(content)
