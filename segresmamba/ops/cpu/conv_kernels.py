"""Compiled depthwise causal convolution with SiLU of the cpu backend, in any scan order.

Arrays are token-major float32 (batch, length, channels), of any strides. A call works on a range of
tiles (positions fastest, then channel blocks, then batch items) and releases the GIL. The backward
pass recomputes the convolution from x, so that the forward pass need not keep it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from segresmamba.ops.cpu.jit import inline, kernel
from segresmamba.ops.cpu.layout import LANES, TILE
from segresmamba.ops.cpu.simd import load, sigmoid, splat, store
from segresmamba.ops.cpu.tiles import (
    find_tokens,
    gather,
    load_lanes,
    scatter,
    scatter_add,
    store_lanes,
)

_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)
_TOKENS, _ROWS, _DENSE3 = "float32[:, :, :]", "float32[:, ::1]", "float32[:, :, ::1]"
_OPERANDS = f"{_TOKENS}, {_ROWS}, Tuple((int64, boolean))"
# How many scratch arrays the kernels need.
TILES = 3


@inline
def _locate(tile: Any, length: Any, channels: Any) -> Any:
    """(batch item, first channel, number of channels, first position, positions) of a tile."""
    per_block = -(-length // TILE)
    blocks = -(-channels // LANES)
    begin = tile % per_block * TILE
    channel = tile // per_block % blocks * LANES
    item = tile // (per_block * blocks)
    return item, channel, min(LANES, channels - channel), begin, min(TILE, length - begin)


@inline
def _convolve(x_t: Any, weights: Any, t: Any) -> Any:
    """Bias + sum_w weight[w] * x_t[t + w]; the last row of weights is the bias."""
    width = weights.shape[0] - 1
    out = load(weights, width, 0)
    for w in range(width):
        out = out + load(weights, w, 0) * load(x_t, t + w, 0)
    return out


@kernel(f"void({_OPERANDS}, {_TOKENS}, {_DENSE3}, int64, int64)")
def forward(
    x: Any, weight_bias: Any, order: Any, u: Any, tiles: Any, start: Any, stop: Any
) -> None:
    """Write u = SiLU(convolution of x) where the token of each position is.

    Args:
        x: (batch, length, channels).
        weight_bias: (width + 1, channels), the present token's weight next to last, bias last.
        order: (slices, reverse).
        u: Like x.
        tiles: Scratch (TILES, TILE + 2 * width, LANES).
        start: First tile.
        stop: Tile after the last.
    """
    past = weight_bias.shape[0] - 2
    x_t, u_t = tiles[0], tiles[1]
    weights = tiles[2, : past + 2]
    tokens = np.empty(TILE + past, np.int64)
    for tile in range(start, stop):
        item, channel, lanes, begin, steps = _locate(tile, x.shape[1], x.shape[2])
        load_lanes(weight_bias, channel, lanes, weights)
        find_tokens(begin - past, x.shape[1], order, tokens[: past + steps])
        gather(x[item], tokens[: past + steps], channel, lanes, x_t)
        for t in range(steps):
            out = _convolve(x_t, weights, t)
            store(u_t, t, 0, out * sigmoid(out))
        scatter(u_t, tokens[past : past + steps], channel, lanes, u[item])


@kernel(f"void({_OPERANDS}, {_TOKENS}, {_TOKENS}, {_ROWS}, {_DENSE3}, int64, int64)")
def backward(
    x: Any, weight_bias: Any, order: Any, d_u: Any, d_x: Any, d_weight_bias: Any, tiles: Any,
    start: Any, stop: Any,
) -> None:  # fmt: skip
    """Gradients of `forward` for the tiles [start, stop), each added to its array.

    x, weight_bias and order are those of `forward`. Besides:
        d_u: Gradient of u (batch, length, channels).
        d_x: (batch, length, channels).
        d_weight_bias: (width + 1, channels), this thread's own.
        tiles: Scratch (TILES, TILE + 2 * width, LANES).
        start: First tile.
        stop: Tile after the last.
    """
    width = weight_bias.shape[0] - 1
    past = width - 1
    x_t, d_t = tiles[0], tiles[1]
    weights, d_weights = tiles[2, : width + 1], tiles[2, width + 1 : 2 * width + 2]
    positions = np.empty(TILE + 2 * past, np.int64)
    for tile in range(start, stop):
        item, channel, lanes, begin, steps = _locate(tile, x.shape[1], x.shape[2])
        load_lanes(weight_bias, channel, lanes, weights)
        load_lanes(d_weight_bias, channel, lanes, d_weights)
        # A token feeds its own position and the W - 1 positions after it, and their outputs need
        # the W - 1 positions before it.
        tokens = positions[: steps + 2 * past]
        find_tokens(begin - past, x.shape[1], order, tokens)
        gather(x[item], tokens, channel, lanes, x_t)
        gather(d_u[item], tokens[past:], channel, lanes, d_t)
        for t in range(steps + past):
            out = _convolve(x_t, weights, t)
            s = sigmoid(out)
            store(d_t, t, 0, load(d_t, t, 0) * s * (splat(_ONE) + out * (splat(_ONE) - s)))
        for w in range(width):
            d_weight = load(d_weights, w, 0)
            for t in range(steps):
                d_weight = d_weight + load(d_t, t, 0) * load(x_t, t + w, 0)
            store(d_weights, w, 0, d_weight)
        d_bias = load(d_weights, width, 0)
        for t in range(steps):
            d_bias = d_bias + load(d_t, t, 0)
            d_token = splat(_ZERO)
            for w in range(width):
                d_token = d_token + load(weights, w, 0) * load(d_t, t + past - w, 0)
            store(x_t, t, 0, d_token)
        store(d_weights, width, 0, d_bias)
        scatter_add(x_t, tokens[past : past + steps], channel, lanes, d_x[item])
        store_lanes(d_weights, channel, lanes, d_weight_bias)
