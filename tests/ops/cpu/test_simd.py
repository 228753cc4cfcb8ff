"""The vectors' elementary functions against NumPy's in double precision."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from segresmamba.ops.cpu import simd
from segresmamba.ops.cpu.layout import LANES


def applied(function):
    """The function over an array whose size is a multiple of the lanes."""

    @njit("void(float32[:, ::1], float32[:, ::1])")
    def apply(x, y):
        for row in range(x.shape[0]):
            simd.store(y, row, 0, function(simd.load(x, row, 0)))

    def run(x):
        x = np.asarray(x, np.float32)
        rows = np.zeros((-(-len(x) // LANES), LANES), np.float32)
        rows.flat[: len(x)] = x
        out = np.empty_like(rows)
        apply(rows, out)
        return out.ravel()[: len(x)]

    return run


@pytest.fixture(scope="module")
def exp2():
    return applied(simd.exp2)


def test_exp2_is_exact_to_the_last_bits(exp2):
    x = np.linspace(-126, 127.49, 20000).astype(np.float32)
    exact = np.exp2(x.astype(np.float64))
    np.testing.assert_allclose(exp2(x), exact, rtol=2.5e-7)


def test_exp2_of_the_extremes(exp2):
    received = exp2([-np.inf, -1e30, -150.0, 127.6, 1e30, np.inf])
    assert received.tolist() == [0.0, 0.0, 0.0, np.inf, np.inf, np.inf]
    assert np.isnan(exp2([np.nan])).all()


def test_sigmoid():
    x = np.linspace(-80, 80, 5000).astype(np.float32)
    exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(applied(simd.sigmoid)(x), exact, rtol=2e-5)
    middle = np.abs(x) < 10
    np.testing.assert_allclose(applied(simd.sigmoid)(x[middle]), exact[middle], rtol=2e-6)


def test_softplus_keeps_its_relative_precision_for_small_steps():
    x = np.linspace(-20, 60, 5000).astype(np.float32)
    exact = np.logaddexp(0.0, x.astype(np.float64))
    np.testing.assert_allclose(applied(simd.softplus)(x), exact, rtol=3e-6)


def test_functions_pass_nan_on_to_its_own_lane():
    x = np.zeros(LANES, np.float32)
    x[5] = np.nan
    for function in (simd.exp2, simd.sigmoid, simd.softplus):
        assert np.flatnonzero(np.isnan(applied(function)(x))).tolist() == [5]


def test_transpose():
    @njit("void(float32[:, ::1])")
    def transpose(x):
        simd.transpose(x, 2)

    x = np.arange((LANES + 3) * LANES, dtype=np.float32).reshape(LANES + 3, LANES)
    expected = x.copy()
    expected[2 : 2 + LANES] = x[2 : 2 + LANES].T
    transpose(x)
    np.testing.assert_array_equal(x, expected)
