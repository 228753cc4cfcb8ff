"""Compiled scan of the cpu backend: plain loops that LLVM turns into vector instructions.

Arrays are token-major float32 (batch, length, channels), of any strides. A scan works on tiles of
TILE positions x LANES channels that fit the first-level cache. A tile is gathered through the
order map, so no permuted copy exists, and channels are the vector lanes, so the recurrence needs
no sum across lanes. A tile is swept once for each of the N states.

The backward scan walks the tiles from the end: it recomputes the states of a tile from the
checkpoint at its start, then runs the adjoint recurrence

    g_l = decay_(l+1) * g_(l+1) + C_l * dy_l      of      h_l = decay_l * h_(l-1) + B_l * (delta u)_l

Each call works on a range of channel blocks and releases the GIL: plain threads run side by side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from segresmamba.ops.cpu.elementary import (
    exp2,
    inline,
    kernel,
    reorder,
    sigmoid,
    softplus,
    token_of,
)
from segresmamba.ops.cpu.scan import TILE

LANES = 16
"""Channels computed together: one 512-bit or two 256-bit vectors of float32."""

_LN2 = np.float32(math.log(2.0))
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


def channel_blocks(channels: int, groups: int) -> int:
    """Blocks of at most LANES channels per batch item; a block never crosses a group."""
    return groups * -(-(channels // groups) // LANES)


@inline
def _locate(block: Any, channels: Any, groups: Any) -> Any:
    """(batch item, group, first channel, channels) of a block."""
    width = channels // groups
    per_group = -(-width // LANES)
    group = block // per_group % groups
    offset = block % per_group * LANES
    item = block // (per_group * groups)
    return item, group, group * width + offset, min(LANES, width - offset)


@inline
def _tokens_of_tile(begin: Any, length: Any, order: Any, tokens: Any) -> Any:
    """The tokens at positions begin, begin + 1, ..., at most a tile of them."""
    steps = min(TILE, length - begin)
    for t in range(steps):
        tokens[t] = token_of(begin + t, length, order)
    return tokens[:steps]


@inline
def _gather(source: Any, tokens: Any, first: Any, lanes: Any, tile: Any) -> None:
    """tile[t, c] = source[tokens[t], first + c], zero beyond the last token and lane."""
    tile[:] = _ZERO
    for c in range(lanes):
        for t in range(tokens.shape[0]):
            tile[t, c] = source[tokens[t], first + c]


@inline
def _scatter(tile: Any, tokens: Any, first: Any, lanes: Any, target: Any) -> None:
    """target[tokens[t], first + c] += tile[t, c]."""
    for c in range(lanes):
        for t in range(tokens.shape[0]):
            target[tokens[t], first + c] += tile[t, c]


@inline
def _gather_states(source: Any, tokens: Any, rows: Any) -> None:
    """rows[n, t] = source[tokens[t], n]."""
    for t in range(tokens.shape[0]):
        for n in range(rows.shape[0]):
            rows[n, t] = source[tokens[t], n]


@inline
def _scatter_states(rows: Any, tokens: Any, target: Any) -> None:
    """target[tokens[t], n] += rows[n, t]."""
    for t in range(tokens.shape[0]):
        for n in range(rows.shape[0]):
            target[tokens[t], n] += rows[n, t]


@inline
def _load_lanes(source: Any, first: Any, lanes: Any, rows: Any) -> None:
    """rows[n, c] = source[n, first + c], zero beyond the last lane."""
    rows[:] = _ZERO
    rows[:, :lanes] = source[:, first : first + lanes]


@inline
def _load_tile(
    u: Any, delta: Any, b: Any, c: Any, skip: Any, bias: Any, soft: Any, tokens: Any, first: Any,
    lanes: Any, u_t: Any, delta_t: Any, du_t: Any, y_t: Any, b_t: Any, c_t: Any,
) -> None:  # fmt: skip
    """Fill a tile: u, activated step sizes, their product, skip * u as the first part of y."""
    _gather(u, tokens, first, lanes, u_t)
    _gather(delta, tokens, first, lanes, delta_t)
    _gather_states(b, tokens, b_t)
    _gather_states(c, tokens, c_t)
    y_t[:] = _ZERO
    for i in range(lanes):
        for t in range(TILE):
            delta_t[t, i] += bias[first + i]
            y_t[t, i] = skip[first + i] * u_t[t, i]
    for t in range(TILE):
        for i in range(LANES):
            if soft:
                delta_t[t, i] = softplus(delta_t[t, i])
            du_t[t, i] = delta_t[t, i] * u_t[t, i]


@inline
def _sweep(delta: Any, du: Any, a: Any, b: Any, c: Any, h: Any, y: Any, steps: Any) -> None:
    """One state of every lane through a tile: h advances, y collects c * h."""
    for t in range(steps):
        b_t, c_t = b[t], c[t]
        for i in range(LANES):
            h_i = exp2(delta[t, i] * a[i]) * h[i] + du[t, i] * b_t
            h[i] = h_i
            y[t, i] += h_i * c_t


@inline
def _replay(
    delta: Any, du: Any, a: Any, b: Any, c: Any, decay: Any, h: Any, y: Any, steps: Any
) -> None:
    """The same sweep, keeping decays and states: h[t + 1] is the state after position t."""
    for t in range(steps):
        b_t, c_t = b[t], c[t]
        for i in range(LANES):
            decay_i = exp2(delta[t, i] * a[i])
            decay[t, i] = decay_i
            h_i = decay_i * h[t, i] + du[t, i] * b_t
            h[t + 1, i] = h_i
            y[t, i] += h_i * c_t


@reorder
def _adjoint(
    delta: Any, du: Any, a: Any, b: Any, c: Any, decay: Any, h: Any, dy: Any, g: Any,
    d_du: Any, d_decay: Any, d_a: Any, d_b: Any, d_c: Any, steps: Any,
) -> None:  # fmt: skip
    """The adjoint sweep of one state: g comes from the tile after and leaves to the one before.

    d_decay collects the gradient of the exponent delta * a per unit of delta, d_a per unit of a.
    """
    for t in range(steps - 1, -1, -1):
        b_t, c_t = b[t], c[t]
        sum_b, sum_c = _ZERO, _ZERO
        for i in range(LANES):
            g_i = g[i] + dy[t, i] * c_t
            sum_c += dy[t, i] * h[t + 1, i]
            sum_b += g_i * du[t, i]
            d_du[t, i] += g_i * b_t
            carried = g_i * decay[t, i]
            g[i] = carried
            exponent = carried * h[t, i]
            d_decay[t, i] += exponent * a[i]
            d_a[i] += exponent * delta[t, i]
        d_b[t] = sum_b
        d_c[t] = sum_c


@inline
def _gate(tile: Any, z_t: Any) -> None:
    """Tile *= SiLU(z)."""
    for t in range(TILE):
        for i in range(LANES):
            tile[t, i] *= z_t[t, i] * sigmoid(z_t[t, i])


@inline
def _gate_gradient(dy_t: Any, y_t: Any, z_t: Any) -> None:
    """Z -> gradient of z, from the gradient of the gated output and the output before the gate."""
    for t in range(TILE):
        for i in range(LANES):
            s = sigmoid(z_t[t, i])
            z_t[t, i] = dy_t[t, i] * y_t[t, i] * s * (_ONE + z_t[t, i] * (_ONE - s))


@inline
def _input_gradients(
    raw_t: Any, bias: Any, skip: Any, soft: Any, first: Any, lanes: Any, u_t: Any, delta_t: Any,
    dy_t: Any, d_du_t: Any, d_decay_t: Any, d_skip: Any, d_bias: Any,
) -> None:  # fmt: skip
    """d_du and d_decay -> gradients of u and of the raw step sizes."""
    for i in range(lanes):
        skip_i, bias_i = skip[first + i], bias[first + i]
        sum_skip, sum_bias = _ZERO, _ZERO
        for t in range(TILE):
            d_delta = d_du_t[t, i] * u_t[t, i] + _LN2 * d_decay_t[t, i]
            if soft:
                d_delta *= sigmoid(raw_t[t, i] + bias_i)
            d_du_t[t, i] = d_du_t[t, i] * delta_t[t, i] + skip_i * dy_t[t, i]
            d_decay_t[t, i] = d_delta
            sum_skip += dy_t[t, i] * u_t[t, i]
            sum_bias += d_delta
        d_skip[first + i] += sum_skip
        d_bias[first + i] += sum_bias


_TOKENS, _LANES_2D, _STATES = "float32[:, :, :]", "float32[:, ::1]", "float32[:, :, :, :]"
_OPERANDS = (
    f"{_TOKENS}, {_TOKENS}, {_TOKENS}, {_LANES_2D}, {_STATES}, {_STATES}, float32[::1], "
    "float32[::1], boolean, Tuple((int64, boolean))"
)


@kernel(f"void({_OPERANDS}, {_TOKENS}, float32[:, :, ::1], float32[:, :, :, ::1], int64, int64)")
def scan_forward(
    u: Any, delta: Any, z: Any, a: Any, b: Any, c: Any, skip: Any, bias: Any, soft: Any,
    order: Any, y: Any, last: Any, checkpoints: Any, start: Any, stop: Any,
) -> None:  # fmt: skip
    """Scan the channel blocks [start, stop) and add their output to y.

    Args:
        u, delta, z: (batch, length, channels); z with no channels means no gate.
        a: (states, channels), A in units of ln 2: decay = 2 ** (delta * a).
        b, c: (batch, groups, length, states).
        skip, bias: (channels,).
        soft: Apply softplus to delta + bias.
        order: (slices, reverse).
        y: (batch, length, channels), added to.
        last: (batch, states, channels), the state after the last position.
        checkpoints: (batch, tiles, states, channels), the state before each tile; no tiles, none
            kept.
        start, stop: Range of channel blocks, batch items slowest.
    """
    length, states = u.shape[1], a.shape[0]
    tiles = np.empty((5, TILE, LANES), np.float32)
    u_t, delta_t, du_t, y_t, z_t = tiles[0], tiles[1], tiles[2], tiles[3], tiles[4]
    b_t, c_t = np.empty((states, TILE), np.float32), np.empty((states, TILE), np.float32)
    a_t, h = np.empty((states, LANES), np.float32), np.empty((states, LANES), np.float32)
    positions = np.empty(TILE, np.int64)
    for block in range(start, stop):
        item, group, first, lanes = _locate(block, u.shape[2], b.shape[1])
        _load_lanes(a, first, lanes, a_t)
        h[:] = _ZERO
        for begin in range(0, length, TILE):
            tokens = _tokens_of_tile(begin, length, order, positions)
            if checkpoints.shape[1]:
                checkpoints[item, begin // TILE, :, first : first + lanes] = h[:, :lanes]
            _load_tile(
                u[item], delta[item], b[item, group], c[item, group], skip, bias, soft, tokens,
                first, lanes, u_t, delta_t, du_t, y_t, b_t, c_t,
            )  # fmt: skip
            for n in range(states):
                _sweep(delta_t, du_t, a_t[n], b_t[n], c_t[n], h[n], y_t, len(tokens))
            if z.shape[2]:
                _gather(z[item], tokens, first, lanes, z_t)
                _gate(y_t, z_t)
            _scatter(y_t, tokens, first, lanes, y[item])
        last[item, :, first : first + lanes] = h[:, :lanes]


@kernel(
    f"void({_OPERANDS}, float32[:, :, :, ::1], {_TOKENS}, float32[:, :, ::1], {_TOKENS}, "
    f"{_TOKENS}, {_TOKENS}, float32[:, :, ::1], {_STATES}, {_STATES}, float32[:, ::1], "
    "float32[:, ::1], int64, int64)"
)
def scan_backward(
    u: Any, delta: Any, z: Any, a: Any, b: Any, c: Any, skip: Any, bias: Any, soft: Any,
    order: Any, checkpoints: Any, dy: Any, d_last: Any, d_u: Any, d_delta: Any, d_z: Any,
    d_a: Any, d_b: Any, d_c: Any, d_skip: Any, d_bias: Any, start: Any, stop: Any,
) -> None:  # fmt: skip
    """Gradients of the channel blocks [start, stop), every one added to its array.

    Args:
        u, delta, z, a, b, c, skip, bias, soft, order, checkpoints: As in `scan_forward`.
        dy: Gradient of the output (batch, length, channels).
        d_last: Gradient of the last state (batch, states, channels).
        d_u, d_delta, d_z: (batch, length, channels).
        d_a: (batch, states, channels), per unit of A = a * ln 2.
        d_b, d_c: (batch, groups, length, states), not shared with another thread.
        d_skip, d_bias: (batch, channels).
        start, stop: Range of channel blocks, batch items slowest.
    """
    length, states = u.shape[1], a.shape[0]
    tiles = np.empty((9, TILE, LANES), np.float32)
    u_t, delta_t, du_t, y_t, z_t = tiles[0], tiles[1], tiles[2], tiles[3], tiles[4]
    dy_t, d_du_t, d_decay_t, decay_t = tiles[5], tiles[6], tiles[7], tiles[8]
    h_t = np.zeros((TILE + 1, LANES), np.float32)
    rows = np.empty((4, states, TILE), np.float32)
    b_t, c_t, d_b_t, d_c_t = rows[0], rows[1], rows[2], rows[3]
    per_lane = np.empty((3, states, LANES), np.float32)
    a_t, g, d_a_t = per_lane[0], per_lane[1], per_lane[2]
    positions = np.empty(TILE, np.int64)
    for block in range(start, stop):
        item, group, first, lanes = _locate(block, u.shape[2], b.shape[1])
        _load_lanes(a, first, lanes, a_t)
        _load_lanes(d_last[item], first, lanes, g)
        d_a_t[:] = _ZERO
        for tile in range((length - 1) // TILE, -1, -1):
            tokens = _tokens_of_tile(tile * TILE, length, order, positions)
            steps = len(tokens)
            _load_tile(
                u[item], delta[item], b[item, group], c[item, group], skip, bias, soft, tokens,
                first, lanes, u_t, delta_t, du_t, y_t, b_t, c_t,
            )  # fmt: skip
            _gather(dy[item], tokens, first, lanes, dy_t)
            if z.shape[2]:
                _gather(z[item], tokens, first, lanes, z_t)
                _gate(dy_t, z_t)
            d_du_t[:] = _ZERO
            d_decay_t[:] = _ZERO
            for n in range(states):
                h_t[0, :lanes] = checkpoints[item, tile, n, first : first + lanes]
                _replay(delta_t, du_t, a_t[n], b_t[n], c_t[n], decay_t, h_t, y_t, steps)
                _adjoint(
                    delta_t, du_t, a_t[n], b_t[n], c_t[n], decay_t, h_t, dy_t, g[n],
                    d_du_t, d_decay_t, d_a_t[n], d_b_t[n], d_c_t[n], steps,
                )  # fmt: skip
            _scatter_states(d_b_t, tokens, d_b[item, group])
            _scatter_states(d_c_t, tokens, d_c[item, group])
            _gather(delta[item], tokens, first, lanes, decay_t)
            _input_gradients(
                decay_t, bias, skip, soft, first, lanes, u_t, delta_t, dy_t, d_du_t, d_decay_t,
                d_skip[item], d_bias[item],
            )  # fmt: skip
            _scatter(d_du_t, tokens, first, lanes, d_u[item])
            _scatter(d_decay_t, tokens, first, lanes, d_delta[item])
            if z.shape[2]:
                _gather(dy[item], tokens, first, lanes, dy_t)
                _gate_gradient(dy_t, y_t, z_t)
                _scatter(z_t, tokens, first, lanes, d_z[item])
        d_a[item, :, first : first + lanes] = d_a_t[:, :lanes]
