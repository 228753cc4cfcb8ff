"""docs/architecture.md names what exists, and its walks name each file once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_imports import ROOMS

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
WALKS = [part for part in PAGE.split("\n## ") if part.startswith("From ")]


def files_of(text: str) -> list[str]:
    return re.findall(r"`([\w/]+\.py)`", text)


def test_every_file_that_the_page_names_exists() -> None:
    places = (REPOSITORY, REPOSITORY / "segresmamba", REPOSITORY / "launch")
    absent = [name for name in files_of(PAGE) if not any((p / name).exists() for p in places)]
    assert not absent


def test_there_are_three_walks() -> None:
    assert len(WALKS) == 3


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.partition("\n")[0])
def test_a_walk_names_each_file_once(walk: str) -> None:
    names = files_of(walk)
    assert len(names) > 4
    assert sorted(set(names)) == sorted(names)


def test_the_rooms_stand_in_the_order_of_the_imports() -> None:
    shown = re.findall(
        r"^\| `(?:segresmamba/)?(\w+)(?:/|\.py)` \|", PAGE.split("\n## ")[1], re.MULTILINE
    )
    assert [name for name in shown if name in ROOMS] == list(reversed(ROOMS))
