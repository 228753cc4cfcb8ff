"""Compiled kernels of the cpu backend: plain loops that LLVM turns into vector instructions.

Arrays are token-major float32 (batch, length, channels), of any strides. A scan works on tiles of
TILE positions x LANES channels that fit the first-level cache; a tile is gathered through the
order map, so no permuted copy exists, and channels are the vector lanes, so the recurrence needs
no sum across lanes. For each of the N states in turn a tile is swept once.

The backward scan walks the tiles from the end: it recomputes the states of a tile from the
checkpoint at its start, then runs the adjoint recurrence

    g_l = decay_(l+1) * g_(l+1) + C_l * dy_l        with  h_l = decay_l * h_(l-1) + B_l * (delta u)_l

Kernels release the GIL and run one contiguous range of channel blocks each, so plain threads run
several side by side (`segresmamba.ops.threads`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

LANES = 16
"""Channels computed together: one 512-bit or two 256-bit vectors of float32."""
TILE = 64
"""Positions per tile, and between two checkpoints of the state."""

_LN2 = np.float32(math.log(2.0))
_LOG2E = np.float32(math.log2(math.e))
# exp2(f) on [-0.5, 0.5]: minimax polynomial, relative error below 2e-8 before rounding.
_P6, _P5, _P4 = np.float32(1.5353362e-4), np.float32(1.3398874e-3), np.float32(9.6184373e-3)
_P3, _P2, _P1 = np.float32(5.5503324e-2), np.float32(2.4022648e-1), np.float32(6.9314718e-1)
_ONE, _LOW, _HIGH = np.float32(1.0), np.float32(-127.0), np.float32(128.0)
_BIAS, _MANTISSA = np.int32(127), np.int32(23)

# Fused multiply-add is allowed; sums are only reordered where a function says so. NaN and
# infinities keep their meaning everywhere.
_contract = njit(fastmath={"contract", "nsz"}, nogil=True)
_reorder = njit(fastmath={"contract", "nsz", "reassoc"}, nogil=True)


@_contract
def _exp2(x: Any) -> Any:
    """2 ** x without a library call, so that the loop around it vectorises; NaN stays NaN."""
    x = max(x, _LOW)
    x = min(x, _HIGH)
    whole = np.rint(x)
    f = x - whole
    p = _P6 * f + _P5
    p = p * f + _P4
    p = p * f + _P3
    p = p * f + _P2
    p = p * f + _P1
    p = p * f + _ONE
    return p * ((np.int32(whole) + _BIAS) << _MANTISSA).view(np.float32)


@_contract
def _sigmoid(x: Any) -> Any:
    return _ONE / (_ONE + _exp2(-x * _LOG2E))


@_contract
def _softplus(x: Any) -> Any:
    """max(x, 0) + log1p(exp(-|x|)), the logarithm as the series of 2 atanh(t / (2 + t))."""
    t = _exp2(-abs(x) * _LOG2E)
    s = t / (np.float32(2.0) + t)
    q = s * s
    p = np.float32(1 / 13) * q + np.float32(1 / 11)
    p = p * q + np.float32(1 / 9)
    p = p * q + np.float32(1 / 7)
    p = p * q + np.float32(1 / 5)
    p = p * q + np.float32(1 / 3)
    p = p * q + _ONE
    positive = x if not x < np.float32(0.0) else np.float32(0.0)
    return positive + np.float32(2.0) * s * p


@_contract
def _token_of(position: Any, length: Any, slices: Any, reverse: Any) -> Any:
    """Token that stands at a position; see segresmamba.ops.orders."""
    if reverse:
        return length - 1 - position
    return (position % slices) * (length // slices) + position // slices


@_contract
def _gather(source: Any, tokens: Any, steps: Any, first: Any, lanes: Any, tile: Any) -> None:
    """tile[t, c] = source[tokens[t], first + c], zero beyond steps and lanes."""
    tile[:] = np.float32(0.0)
    for c in range(lanes):
        for t in range(steps):
            tile[t, c] = source[tokens[t], first + c]


@_contract
def _scatter(tile: Any, tokens: Any, steps: Any, first: Any, lanes: Any, target: Any) -> None:
    """target[tokens[t], first + c] += tile[t, c]."""
    for c in range(lanes):
        for t in range(steps):
            target[tokens[t], first + c] += tile[t, c]


@_contract
def _step_sizes(delta: Any, bias: Any, first: Any, lanes: Any, softplus: Any) -> None:
    """Turn a tile of raw step sizes into the ones of the recurrence."""
    steps = delta.shape[0]
    for c in range(lanes):
        shift = bias[first + c]
        for t in range(steps):
            delta[t, c] += shift
    if softplus:
        for t in range(steps):
            for c in range(LANES):
                delta[t, c] = _softplus(delta[t, c])


@_contract
def _sweep(delta: Any, du: Any, a: Any, b: Any, c: Any, h: Any, y: Any) -> None:
    """One state of every lane through a tile: h advances, y collects c * h."""
    for t in range(b.shape[0]):
        b_t, c_t = b[t], c[t]
        for i in range(LANES):
            h_i = _exp2(delta[t, i] * a[i]) * h[i] + du[t, i] * b_t
            h[i] = h_i
            y[t, i] += h_i * c_t


@_contract
def _replay(delta: Any, du: Any, a: Any, b: Any, decay: Any, h: Any) -> None:
    """The same sweep, keeping decays and states: h[t + 1] is the state after position t."""
    for t in range(b.shape[0]):
        b_t = b[t]
        for i in range(LANES):
            decay_i = _exp2(delta[t, i] * a[i])
            decay[t, i] = decay_i
            h[t + 1, i] = decay_i * h[t, i] + du[t, i] * b_t


@_reorder
def _adjoint(
    delta: Any, du: Any, a: Any, b: Any, c: Any, decay: Any, h: Any, dy: Any, g: Any,
    d_du: Any, d_decay: Any, d_a: Any, d_b: Any, d_c: Any,
) -> None:  # fmt: skip
    """The adjoint sweep of one state: g enters from the tile after and leaves to the one before.

    d_decay collects the gradient of the exponent per unit of delta, d_a per unit of a.
    """
    for t in range(b.shape[0] - 1, -1, -1):
        b_t, c_t = b[t], c[t]
        sum_b, sum_c = np.float32(0.0), np.float32(0.0)
        for i in range(LANES):
            g_i = g[i] + dy[t, i] * c_t
            sum_c += dy[t, i] * h[t + 1, i]
            sum_b += g_i * du[t, i]
            d_du[t, i] += g_i * b_t
            g_i *= decay[t, i]
            g[i] = g_i
            exponent = g_i * h[t, i]
            d_decay[t, i] += exponent * a[i]
            d_a[i] += exponent * delta[t, i]
        d_b[t] += sum_b
        d_c[t] += sum_c


@_contract
def scan_forward(
    u: Any, delta: Any, z: Any, a: Any, b: Any, c: Any, skip: Any, bias: Any, softplus: Any,
    slices: Any, reverse: Any, y: Any, last: Any, checkpoints: Any, start: Any, stop: Any,
) -> None:  # fmt: skip
    """Scan the channel blocks [start, stop) and add the output to y.

    Args:
        u, delta, z: (batch, length, channels); z may have zero channels for no gate.
        a: (states, channels), A in units of ln 2: decay = 2 ** (delta * a).
        b, c: (batch, groups, length, states).
        skip, bias: (channels,).
        softplus, slices, reverse: Step-size rule and order map.
        y: (batch, length, channels), added to.
        last: (batch, states, channels), the state after the last position.
        checkpoints: (batch, tiles, states, channels), the state before each tile; may have zero
            tiles to keep none.
        start, stop: Range of channel blocks, counted over batch, groups and blocks of a group.
    """
    length, states = u.shape[1], a.shape[0]
    width = u.shape[2] // b.shape[1]
    blocks = (width + LANES - 1) // LANES
    tokens = np.empty(TILE, np.int64)
    delta_t, u_t, du_t = _tile(), _tile(), _tile()
    y_t, z_t = _tile(), _tile()
    b_t, c_t = np.empty((states, TILE), np.float32), np.empty((states, TILE), np.float32)
    a_t, h = np.empty((states, LANES), np.float32), np.empty((states, LANES), np.float32)
    for block in range(start, stop):
        item, group = block // blocks // b.shape[1], block // blocks % b.shape[1]
        first = group * width + block % blocks * LANES
        lanes = min(LANES, (group + 1) * width - first)
        _load_rows(a, first, lanes, a_t)
        h[:] = np.float32(0.0)
        for begin in range(0, length, TILE):
            steps = min(TILE, length - begin)
            for t in range(steps):
                tokens[t] = _token_of(begin + t, length, slices, reverse)
            if checkpoints.shape[1]:
                checkpoints[item, begin // TILE, :, first : first + lanes] = h[:, :lanes]
            _gather(u[item], tokens, steps, first, lanes, u_t)
            _gather(delta[item], tokens, steps, first, lanes, delta_t)
            _step_sizes(delta_t, bias, first, lanes, softplus)
            _load_columns(b[item, group], tokens, steps, b_t)
            _load_columns(c[item, group], tokens, steps, c_t)
            _skip_tile(u_t, delta_t, skip, first, lanes, du_t, y_t)
            for n in range(states):
                _sweep(delta_t, du_t, a_t[n], b_t[n, :steps], c_t[n, :steps], h[n], y_t)
            if z.shape[2]:
                _gather(z[item], tokens, steps, first, lanes, z_t)
                _gate(y_t, z_t)
            _scatter(y_t, tokens, steps, first, lanes, y[item])
        last[item, :, first : first + lanes] = h[:, :lanes]


@_contract
def scan_backward(
    u: Any, delta: Any, z: Any, a: Any, b: Any, c: Any, skip: Any, bias: Any, softplus: Any,
    slices: Any, reverse: Any, checkpoints: Any, dy: Any, d_last: Any, d_u: Any, d_delta: Any,
    d_z: Any, d_a: Any, d_b: Any, d_c: Any, d_skip: Any, d_bias: Any, start: Any, stop: Any,
) -> None:  # fmt: skip
    """Gradients of `scan_forward` for the channel blocks [start, stop); all are added to.

    Args:
        u, delta, z, a, b, c, skip, bias, softplus, slices, reverse, checkpoints: As in the forward.
        dy: Gradient of the gated output (batch, length, channels).
        d_last: Gradient of the last state (batch, states, channels).
        d_u, d_delta, d_z: (batch, length, channels).
        d_a: (batch, states, channels), in units of A (not of a).
        d_b, d_c: (batch, groups, length, states), this thread's own share.
        d_skip, d_bias: (batch, channels).
        start, stop: Range of channel blocks.
    """
    length, states = u.shape[1], a.shape[0]
    width = u.shape[2] // b.shape[1]
    blocks = (width + LANES - 1) // LANES
    tokens = np.empty(TILE, np.int64)
    delta_t, u_t, du_t, dy_t = _tile(), _tile(), _tile(), _tile()
    slope_t, y_t, z_t = _tile(), _tile(), _tile()
    d_du_t, d_decay_t, decay_t = _tile(), _tile(), _tile()
    h_t = np.empty((TILE + 1, LANES), np.float32)
    b_t, c_t = np.empty((states, TILE), np.float32), np.empty((states, TILE), np.float32)
    d_b_t, d_c_t = np.empty((states, TILE), np.float32), np.empty((states, TILE), np.float32)
    a_t, g, d_a_t = (np.empty((states, LANES), np.float32) for _ in range(3))
