from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segresmamba import data
from segresmamba.config import DataConfig
from segresmamba.engine import train
from segresmamba.engine.timing import WaitAdvice
from tests.engine.tiny import tiny_config


def advice(
    caplog: pytest.LogCaptureFixture, *records: tuple[float, float], **changes: Any
) -> list[str]:
    advice = WaitAdvice(DataConfig(store="x", patch=(8, 8, 8), **changes))
    for step_s, wait_s in records:
        advice.record(step_s, wait_s)
    return [record.getMessage() for record in caplog.records if record.name.endswith("timing")]


def test_waiting_for_more_than_a_tenth_is_said_once_with_the_remedy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (said,) = advice(caplog, (1.0, 0.05), (1.0, 0.25), (1.0, 0.9), workers=3)
    assert said.startswith("25 % of a step is waiting for data")
    assert "raise data.workers (now 3" in said
    assert "data.stage" in said


def test_who_stages_is_not_told_to_stage(caplog: pytest.LogCaptureFixture) -> None:
    (said,) = advice(caplog, (1.0, 0.5), (1.0, 0.5), stage="/tmp")
    assert "data.stage" not in said


@pytest.mark.parametrize("records", [[(1.0, 0.9)], [(1.0, 0.9), (1.0, 0.1)]])
def test_the_start_of_the_readers_and_short_waits_are_not_worth_a_word(
    caplog: pytest.LogCaptureFixture, records: list[tuple[float, float]]
) -> None:
    assert advice(caplog, *records) == []


def test_a_training_whose_readers_are_slow_says_so(
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make = data.make_loader

    def slow(*args: Any, **options: Any) -> Iterator[data.Batch]:
        for batch in make(*args, **options):
            time.sleep(1)
            yield batch

    monkeypatch.setattr(data, "make_loader", slow)
    train(tiny_config(tiny_store, tmp_path, f"data.stage={tmp_path}/node"))
    assert [r.levelname for r in caplog.records if "waiting for data" in r.getMessage()] == [
        "WARNING"
    ]
    assert list((tmp_path / "node").glob("*/*/zarr.json"))
