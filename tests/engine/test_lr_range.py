from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from segresmamba.engine import lr_range
from segresmamba.engine.lr_range import LrRange
from segresmamba.errors import UserError
from tests.engine.tiny import tiny_config


def valley(broken: float) -> LrRange:
    """A loss that falls from 2 to 1 up to a rate of 0.01, and then breaks."""
    rates = [10 ** (-6 + step / 20) for step in range(100)]
    losses = [2 - step / 80 if step < 80 else broken for step in range(100)]
    return LrRange(rates, losses)


def test_the_suggestion_is_a_tenth_of_the_rate_at_the_lowest_loss() -> None:
    found = valley(broken=8.0)
    assert found.is_broken
    assert found.suggested == pytest.approx(1e-3, rel=0.2)
    assert not valley(broken=1.0).is_broken
    assert valley(broken=math.nan).suggested == pytest.approx(1e-3, rel=0.2)


def test_a_loss_that_breaks_at_once_is_said() -> None:
    with pytest.raises(UserError, match="breaks too early"):
        LrRange([1e-6, 1e-5], [2.0, math.nan]).suggested  # noqa: B018


def test_a_search_writes_a_table_and_a_picture_and_no_run(tiny_store: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_store, tmp_path / "runs")
    found = lr_range(config, steps=12, lowest=1e-5, highest=1e-1)
    assert found.rates[0] == 1e-5
    assert found.rates == sorted(found.rates)
    assert 1e-6 <= found.suggested <= 1e-2
    table, picture = found.write(tmp_path / "out")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [float(row["lr"]) for row in rows] == found.rates
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "runs").exists()
