from __future__ import annotations

import pytest

from segresmamba.evaluation.pictures import standing


@pytest.mark.parametrize(
    ("index", "count", "text"),
    [
        (0, 1, "the only case"),
        (0, 2, "worst of 2 cases"),
        (1, 2, "best of 2 cases"),
        (2, 5, "median of 5 cases"),
        (1, 5, "number 2 from the worst of 5 cases"),
    ],
)
def test_a_picture_says_how_good_its_case_is_among_all(index: int, count: int, text: str) -> None:
    assert standing(index, count) == text
