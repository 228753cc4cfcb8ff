"""Tiles are read and written through any order, whatever the memory layout of the array."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numba import njit

from segresmamba.ops.cpu.layout import LANES, TILE
from segresmamba.ops.cpu.tiles import find_tokens, gather, scatter, scatter_add
from segresmamba.ops.orders import ORDERS, order_map, scan_order_indices

CHANNELS = LANES + 3


def compiled(signature):
    """Compile at the first call: every process of the tests imports this file, one runs it."""

    def wrap(function):
        kernel = cache(lambda: njit(signature)(function))

        def call(*operands):
            return kernel()(*operands)

        return call

    return wrap


@compiled("void(float32[:, :], int64[::1], int64, int64, float32[:, ::1])")
def _gather(source, tokens, channel, lanes, tile):
    gather(source, tokens, channel, lanes, tile)


@compiled("void(float32[:, ::1], int64[::1], int64, int64, float32[:, :], boolean)")
def _scatter(tile, tokens, channel, lanes, target, add):
    if add:
        scatter_add(tile, tokens, channel, lanes, target)
    else:
        scatter(tile, tokens, channel, lanes, target)


@compiled("void(int64, int64, Tuple((int64, boolean)), int64[::1])")
def _find_tokens(first, length, order, tokens):
    find_tokens(first, length, order, tokens)


def array_of(layout, length):
    """Random (length, CHANNELS) in memory as named."""
    values = np.random.default_rng(0).standard_normal((length, CHANNELS)).astype(np.float32)
    if layout == "channel-major":
        return np.asfortranarray(values)
    if layout == "strided":
        return np.repeat(values, 2, axis=1)[:, ::2]
    return values


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("length", "slices"), [(16, 2), (64, 8), (64, 64), (60, 5)])
def test_tokens_of_a_tile_follow_the_order(order, length, slices):
    tokens = np.empty(length + 5, np.int64)
    _find_tokens(-3, length, tuple(order_map(order, slices)), tokens)
    expected = scan_order_indices(order, length, slices)
    assert tokens.tolist() == [-1] * 3 + expected.tolist() + [-1] * 2


@pytest.mark.parametrize("layout", ["token-major", "channel-major", "strided"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("length", "slices"), [(16, 2), (64, 8), (60, 5)])
@pytest.mark.parametrize(("channel", "lanes"), [(0, LANES), (2, LANES), (LANES, 3)])
def test_gather_then_scatter(layout, order, length, slices, channel, lanes):
    source = array_of(layout, length)
    tokens = scan_order_indices(order, length, slices).numpy()
    tile = np.full((TILE, LANES), np.nan, np.float32)
    _gather(source, tokens, channel, lanes, tile)
    expected = source[tokens, channel : channel + lanes]
    np.testing.assert_array_equal(tile[:length, :lanes], expected)
    assert not tile[:length, lanes:].any()

    target = np.zeros_like(source)
    _scatter(tile.copy(), tokens, channel, lanes, target, False)
    _scatter(tile.copy(), tokens, channel, lanes, target, True)
    twice = np.zeros_like(source)
    twice[tokens, channel : channel + lanes] = 2 * expected
    np.testing.assert_array_equal(target, twice)


def test_no_token_reads_as_zero():
    source = array_of("token-major", 4)
    tile = np.full((TILE, LANES), np.nan, np.float32)
    _gather(source, np.array([-1, 2, -1]), 0, LANES, tile)
    np.testing.assert_array_equal(tile[:3], [np.zeros(LANES), source[2, :LANES], np.zeros(LANES)])
