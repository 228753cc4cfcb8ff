"""Means, medians and intervals over cases, where a value may be missing (nan)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES, SEED, COVERAGE = 2000, 0, 0.95

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Statistic:
    """A metric of a class over the cases."""

    mean: float
    """Over the cases that have a value; nan if none has."""
    median: float
    low: float
    high: float
    """Ends of the 95 % interval of the mean; nan with fewer than two cases."""
    undefined: int
    """Cases without a value."""


def statistics(values_NKM: Array) -> list[list[Statistic]]:
    """Summarise the values of cases (N) for classes (K) and metrics (M).

    Intervals are Efron's bootstrap: percentiles of the mean over cases that are drawn with
    replacement. The seed is fixed, and all classes and metrics are drawn together.

    Returns:
        By class and metric. A last class is the mean over the classes.
    """
    cases, classes, metrics = values_NKM.shape
    (means_KM,) = _means(np.ones((1, cases)), values_NKM)
    low_KM = high_KM = np.full_like(means_KM, np.nan)
    if cases > 1:
        drawn_RN = draws(cases)
        resampled_RKM = _means(drawn_RN, values_NKM)
        outside = 50 * (1 - COVERAGE)
        low_KM, high_KM = _ignoring_nan(
            np.nanpercentile, resampled_RKM, axis=0, q=(outside, 100 - outside)
        )
    # For the mean over the classes, median and number are those of the means of the cases.
    of_cases_N1M = _ignoring_nan(np.nanmean, values_NKM, axis=1)[:, None]
    all_NKM = np.concatenate([values_NKM, of_cases_N1M], axis=1)
    median_KM = _ignoring_nan(np.nanmedian, all_NKM, axis=0)
    undefined_KM = np.isnan(all_NKM).sum(0)

    def of(k: int, m: int) -> Statistic:
        mean, median, low, high = (
            float(one[k, m]) for one in (means_KM, median_KM, low_KM, high_KM)
        )
        return Statistic(mean, median, low, high, int(undefined_KM[k, m]))

    return [[of(k, m) for m in range(metrics)] for k in range(classes + 1)]


def draws(cases: int) -> Array:
    """How often each case is drawn in each resample (R, N)."""
    rng = np.random.default_rng(SEED)
    counts: Array = rng.multinomial(cases, np.full(cases, 1 / cases), RESAMPLES).astype(np.float64)
    return counts


def _means(weights_RN: Array, values_NKM: Array) -> Array:
    """Weighted means over the cases for each class, and the mean of those over the classes."""
    defined_NKM = ~np.isnan(values_NKM)
    sums_RKM = np.tensordot(weights_RN, np.where(defined_NKM, values_NKM, 0), 1)
    weights_RKM = np.tensordot(weights_RN, defined_NKM.astype(np.float64), 1)
    with np.errstate(invalid="ignore"):  # 0 / 0, where no case has a value
        means_RKM = sums_RKM / weights_RKM
    of_classes_R1M = _ignoring_nan(np.nanmean, means_RKM, axis=1)[:, None]
    return np.concatenate([means_RKM, of_classes_R1M], axis=1)


def _ignoring_nan(function: Any, array: Array, **options: Any) -> Array:
    """A function such as nanmean, without its warning of slices that are nan throughout."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result: Array = function(array, **options)
    return result
