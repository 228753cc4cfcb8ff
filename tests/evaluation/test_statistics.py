from __future__ import annotations

import math

import numpy as np
import pytest

from segresmamba.evaluation.statistics import statistics

NAN = math.nan


def test_means_are_over_cases_and_then_over_classes() -> None:
    values_NKM = np.array([[[0.8], [0.6]], [[0.9], [0.0]]])
    ball, box, mean = (row[0] for row in statistics(values_NKM))
    assert (ball.mean, box.mean, mean.mean) == pytest.approx((0.85, 0.3, 0.575))
    assert mean.median == pytest.approx((0.7 + 0.45) / 2)
    assert mean.undefined == 0


def test_values_that_are_missing_are_left_out_and_counted() -> None:
    values_NKM = np.array([[[1.0], [NAN]], [[0.5], [NAN]], [[NAN], [NAN]]])
    first, second, mean = (row[0] for row in statistics(values_NKM))
    assert (first.mean, first.median, first.undefined) == (0.75, 0.75, 1)
    assert math.isnan(second.mean)
    assert math.isnan(second.low)
    assert second.undefined == 3
    assert (mean.mean, mean.undefined) == (0.75, 1)


def test_one_case_has_no_interval() -> None:
    (only, _) = (row[0] for row in statistics(np.array([[[0.5]]])))
    assert only.mean == 0.5
    assert math.isnan(only.low)
    assert math.isnan(only.high)


def test_the_interval_is_that_of_the_mean_and_the_same_each_time() -> None:
    sample = np.random.default_rng(3).normal(10, 2, 200)
    first, second = (statistics(sample[:, None, None])[0][0] for _ in range(2))
    assert first == second
    half = 1.96 * sample.std(ddof=1) / math.sqrt(200)
    assert first.low == pytest.approx(sample.mean() - half, abs=0.1 * half)
    assert first.high == pytest.approx(sample.mean() + half, abs=0.1 * half)


def test_intervals_agree_with_scipys_bootstrap() -> None:
    from scipy.stats import bootstrap

    sample = np.random.default_rng(1).beta(8, 2, 30)
    ours = statistics(sample[:, None, None])[0][0]
    theirs = bootstrap(
        (sample,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
