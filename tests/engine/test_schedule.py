from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segresmamba.config.train import TrainConfig
from segresmamba.engine.schedule import learning_rate

Kind = Literal["cosine", "polynomial", "constant"]
KINDS: list[Kind] = ["cosine", "polynomial", "constant"]


@st.composite
def schedules(draw: st.DrawFn) -> TrainConfig:
    max_steps = draw(st.integers(2, 300))
    return TrainConfig(
        max_steps=max_steps,
        warmup_steps=draw(st.integers(0, max_steps - 1)),
        lr=draw(st.floats(1e-6, 1.0)),
        schedule=draw(st.sampled_from(KINDS)),
    )


def rates(train: TrainConfig) -> list[float]:
    return [learning_rate(step, train) for step in range(train.max_steps + 1)]


@settings(deadline=None)
@given(schedules())
def test_it_rises_from_above_zero_to_the_peak_and_never_rises_again(train: TrainConfig) -> None:
    values, top = rates(train), train.warmup_steps
    assert values[0] > 0
    assert values[top] == train.lr == max(values)
    assert all(before < after for before, after in pairwise(values[: top + 1]))
    assert all(before >= after for before, after in pairwise(values[top:]))


@settings(deadline=None)
@given(schedules())
def test_it_ends_at_zero_unless_it_is_constant(train: TrainConfig) -> None:
    end = train.lr if train.schedule == "constant" else 0.0
    assert rates(train)[-1] == pytest.approx(end, abs=1e-12)


@settings(deadline=None)
@given(schedules())
def test_no_step_changes_it_by_more_than_the_steepest_slope(train: TrainConfig) -> None:
    values, rest = rates(train), train.max_steps - train.warmup_steps
    # Rise: 1 / (warm-up + 1). Cosine: pi / 2 at half way. Polynomial: its last step, (1 / n)^0.9.
    steepest = max(1 / (train.warmup_steps + 1), math.pi / 2 / rest, (1 / rest) ** 0.9)
    jumps = [abs(after - before) for before, after in pairwise(values)]
    assert max(jumps) <= train.lr * steepest * (1 + 1e-9)


@pytest.mark.parametrize(
    ("kind", "half"), [("cosine", 0.5), ("polynomial", 0.5**0.9), ("constant", 1.0)]
)
def test_half_way_down(kind: Kind, half: float) -> None:
    train = TrainConfig(max_steps=110, warmup_steps=10, lr=2.0, schedule=kind)
    assert learning_rate(60, train) == pytest.approx(2 * half)


def test_the_warm_up_is_linear() -> None:
    train = TrainConfig(max_steps=10, warmup_steps=3, lr=1.0)
    assert [learning_rate(step, train) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("step", [-1, 11])
def test_a_step_outside_the_run_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match="outside a run of 10 steps"):
        learning_rate(step, TrainConfig(max_steps=10))
