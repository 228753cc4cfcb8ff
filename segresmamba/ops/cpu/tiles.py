"""Tiles: TILE positions x LANES channels of an array, read and written through an order map.

Reading and writing have a fast way for token-major and one for channel-major arrays, and a slow one
for all others. Transposing channel-major tiles in registers took the scan from 9.5 to 8.3 ms
forward and from 27 to 21 ms backward (docs/performance.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from segresmamba.ops.cpu.jit import inline
from segresmamba.ops.cpu.layout import LANES
from segresmamba.ops.cpu.simd import load, splat, store, transpose

_ZERO = np.float32(0.0)
_FLOAT_BYTES = 4


@inline
def find_tokens(first: Any, length: Any, order: Any, tokens: Any) -> None:
    """Tokens at the positions first, first + 1, ...; -1 outside the sequence.

    The order is a pair (slices, reverse), see segresmamba.ops.orders.
    """
    slices, reverse = order
    width = length // slices
    place, part = first // slices, first % slices
    for t in range(tokens.shape[0]):
        position = first + t
        if position < 0 or position >= length:
            tokens[t] = -1
        elif reverse:
            tokens[t] = length - 1 - position
        else:
            tokens[t] = part * width + place
        part += 1
        if part == slices:
            part = 0
            place += 1


@inline
def _is_square(array: Any, tokens: Any, lanes: Any) -> Any:
    """Whether a tile of a channel-major array can be moved by whole vectors and transposed.

    That needs all lanes, and tokens that follow each other in multiples of a vector.
    """
    if lanes != LANES or array.strides[0] != _FLOAT_BYTES or tokens.shape[0] % LANES:
        return False
    first = tokens[0]
    in_a_row = first >= 0
    for t in range(tokens.shape[0]):
        in_a_row &= tokens[t] == first + t
    return in_a_row


@inline
def gather(source: Any, tokens: Any, channel: Any, lanes: Any, tile: Any) -> None:
    """tile[t, c] = source[tokens[t], channel + c], zero beyond the lanes and where token is -1."""
    steps = tokens.shape[0]
    if lanes == LANES and source.strides[1] == _FLOAT_BYTES:
        for t in range(steps):
            if tokens[t] >= 0:
                store(tile, t, 0, load(source, tokens[t], channel))
            else:
                store(tile, t, 0, splat(_ZERO))
    elif _is_square(source, tokens, lanes):
        for t in range(0, steps, LANES):
            for c in range(LANES):
                store(tile, t + c, 0, load(source.T, channel + c, tokens[t]))
            transpose(tile, t)
    else:
        for t in range(steps):
            store(tile, t, 0, splat(_ZERO))
        for c in range(lanes):
            for t in range(steps):
                if tokens[t] >= 0:
                    tile[t, c] = source[tokens[t], channel + c]


@inline
def scatter(tile: Any, tokens: Any, channel: Any, lanes: Any, target: Any) -> None:
    """target[tokens[t], channel + c] = tile[t, c]; the tile may be transposed in place."""
    steps = tokens.shape[0]
    if lanes == LANES and target.strides[1] == _FLOAT_BYTES:
        for t in range(steps):
            store(target, tokens[t], channel, load(tile, t, 0))
    elif _is_square(target, tokens, lanes):
        for t in range(0, steps, LANES):
            transpose(tile, t)
            for c in range(LANES):
                store(target.T, channel + c, tokens[t], load(tile, t + c, 0))
    else:
        for c in range(lanes):
            for t in range(steps):
                target[tokens[t], channel + c] = tile[t, c]


@inline
def scatter_add(tile: Any, tokens: Any, channel: Any, lanes: Any, target: Any) -> None:
    """target[tokens[t], channel + c] += tile[t, c]."""
    if lanes == LANES and target.strides[1] == _FLOAT_BYTES:
        for t in range(tokens.shape[0]):
            before = load(target, tokens[t], channel)
            store(target, tokens[t], channel, before + load(tile, t, 0))
    else:
        for c in range(lanes):
            for t in range(tokens.shape[0]):
                target[tokens[t], channel + c] += tile[t, c]


@inline
def load_lanes(source: Any, channel: Any, lanes: Any, rows: Any) -> None:
    """rows[n, c] = source[n, channel + c], zero beyond the lanes."""
    for n in range(rows.shape[0]):
        for c in range(LANES):
            rows[n, c] = source[n, channel + c] if c < lanes else _ZERO


@inline
def store_lanes(rows: Any, channel: Any, lanes: Any, target: Any) -> None:
    """target[n, channel + c] = rows[n, c]."""
    for n in range(rows.shape[0]):
        for c in range(lanes):
            target[n, channel + c] = rows[n, c]
