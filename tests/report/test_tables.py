from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segresmamba.report.tables import number


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (None, None, ""),
        (0.0, None, "0"),
        (1.0, None, "1.00"),
        (0.0012345, None, "0.00123"),
        (12.345, None, "12.3"),
        (123456.7, None, "123,457"),
        (0.87654, 3, "0.877"),
    ],
)
def test_numbers_show_what_counts(value: float | None, decimals: int | None, text: str) -> None:
    assert number(value, decimals) == text


@given(st.floats(1e-9, 1e9))
def test_a_shown_number_is_within_half_a_percent(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.00501)
    assert "e" not in number(value)
