"""Compiled scan of the cpu backend.

Arrays are token-major float32 (batch, length, channels), of any strides. A scan works on tiles of
TILE positions x LANES channels that fit the first-level cache. It gathers a tile through the order
map, so no permuted copy exists. Channels are the vector lanes, so the recurrence needs no sum
across lanes. A tile is swept once for each of the N states.

The backward scan walks the tiles from the end. It recomputes the states of a tile from the
checkpoint at its start, then runs the adjoint recurrence

    g_l = decay_(l+1) * g_(l+1) + C_l * dy_l    of    h_l = decay_l * h_(l-1) + B_l * (delta u)_l

Each call works on a range of channel blocks and releases the GIL, so plain threads run side by
side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from segresmamba.ops.cpu.jit import inline, kernel
from segresmamba.ops.cpu.layout import LANES, TILE
from segresmamba.ops.cpu.simd import exp2, load, sigmoid, softplus, splat, store, total
from segresmamba.ops.cpu.tiles import (
    find_tokens,
    gather,
    load_lanes,
    scatter,
    scatter_add,
    store_lanes,
)

_LN2, _ZERO, _ONE = np.float32(math.log(2.0)), np.float32(0.0), np.float32(1.0)


@inline
def _locate(block: Any, channels: Any, groups: Any) -> Any:
    """(batch item, group, first channel, number of channels) of a block."""
    width = channels // groups
    per_group = -(-width // LANES)
    group = block // per_group % groups
    offset = block % per_group * LANES
    item = block // (per_group * groups)
    return item, group, group * width + offset, min(LANES, width - offset)


@inline
def _clear(rows: Any) -> None:
    for n in range(rows.shape[0]):
        store(rows, n, 0, splat(_ZERO))


@inline
def _load_tile(
    u: Any, delta: Any, b: Any, c: Any, skip_bias: Any, soft: Any, tokens: Any, channel: Any,
    lanes: Any, u_t: Any, delta_t: Any, du_t: Any, y_t: Any, b_t: Any, c_t: Any,
) -> None:  # fmt: skip
    """Fill a tile: u, activated step sizes, their product, skip * u as the first part of y."""
    # B and C are gathered token by token too: kept by state, the inter-slice order took 17 ms
    # forward where it now takes 12 (docs/performance.md).
    gather(u, tokens, channel, lanes, u_t)
    gather(delta, tokens, channel, lanes, delta_t)
    for k in range(b_t.shape[0]):
        first = k * LANES
        gather(b, tokens, first, min(LANES, b.shape[1] - first), b_t[k])
        gather(c, tokens, first, min(LANES, b.shape[1] - first), c_t[k])
    skip_v, bias_v = load(skip_bias, 0, 0), load(skip_bias, 1, 0)
    for t in range(tokens.shape[0]):
        u_v, delta_v = load(u_t, t, 0), load(delta_t, t, 0) + bias_v
        if soft:
            delta_v = softplus(delta_v)
        store(delta_t, t, 0, delta_v)
        store(du_t, t, 0, delta_v * u_v)
        store(y_t, t, 0, skip_v * u_v)


@inline
def _sweep(delta: Any, du: Any, a: Any, b: Any, c: Any, n: Any, h: Any, y: Any, steps: Any) -> None:
    """State n of every lane through a tile: h advances, y collects c * h."""
    i = n % LANES
    a_v, h_v = load(a, n, 0), load(h, n, 0)
    for t in range(steps):
        h_v = exp2(load(delta, t, 0) * a_v) * h_v + load(du, t, 0) * splat(b[t, i])
        store(y, t, 0, load(y, t, 0) + h_v * splat(c[t, i]))
    store(h, n, 0, h_v)


@inline
def _replay(
    delta: Any, du: Any, a: Any, b: Any, c: Any, n: Any, decay: Any, h: Any, y: Any, steps: Any
) -> None:
    """The sweep of `_sweep`, but keeping decays and states: h[t + 1] is the state after t."""
    i = n % LANES
    a_v, h_v = load(a, n, 0), load(h, 0, 0)
    for t in range(steps):
        decay_v = exp2(load(delta, t, 0) * a_v)
        store(decay, t, 0, decay_v)
        h_v = decay_v * h_v + load(du, t, 0) * splat(b[t, i])
        store(h, t + 1, 0, h_v)
        store(y, t, 0, load(y, t, 0) + h_v * splat(c[t, i]))


@inline
def _adjoint(
    delta: Any, du: Any, a: Any, b: Any, c: Any, n: Any, decay: Any, h: Any, dy: Any, g: Any,
    d_du: Any, d_decay: Any, d_a: Any, d_b: Any, d_c: Any, steps: Any,
) -> None:  # fmt: skip
    """The adjoint sweep of state n: g comes in from the next tile and goes out to the previous one.

    The exponent of a decay is delta * a. Its gradient is added to d_decay times a and to d_a times
    delta.
    """
    i = n % LANES
    a_v, g_v, d_a_v = load(a, n, 0), load(g, n, 0), load(d_a, n, 0)
    for t in range(steps - 1, -1, -1):
        dy_v = load(dy, t, 0)
        g_v = g_v + dy_v * splat(c[t, i])
        d_c[t, i] = total(dy_v * load(h, t + 1, 0))
        d_b[t, i] = total(g_v * load(du, t, 0))
        store(d_du, t, 0, load(d_du, t, 0) + g_v * splat(b[t, i]))
        g_v = g_v * load(decay, t, 0)
        exponent_v = g_v * load(h, t, 0)
        store(d_decay, t, 0, load(d_decay, t, 0) + exponent_v * a_v)
        d_a_v = d_a_v + exponent_v * load(delta, t, 0)
    store(g, n, 0, g_v)
    store(d_a, n, 0, d_a_v)


@inline
def _state_gradients(
    delta: Any, du: Any, a: Any, b: Any, c: Any, dy: Any, g: Any, checkpoint: Any, channel: Any,
    lanes: Any, decay: Any, h: Any, y: Any, d_du: Any, d_decay: Any, d_a: Any, d_b: Any, d_c: Any,
    steps: Any,
) -> None:  # fmt: skip
    """Every state of a tile: forwards from its checkpoint, then its adjoint backwards."""
    _clear(d_du)
    _clear(d_decay)
    for n in range(a.shape[0]):
        load_lanes(checkpoint[n : n + 1], channel, lanes, h[:1])
        k = n // LANES
        _replay(delta, du, a, b[k], c[k], n, decay, h, y, steps)
        _adjoint(
            delta, du, a, b[k], c[k], n, decay, h, dy, g, d_du, d_decay, d_a, d_b[k], d_c[k], steps
        )


@inline
def _gate(z: Any, tokens: Any, channel: Any, lanes: Any, z_t: Any, tile: Any) -> None:
    """Load the tile of z, if there is a gate, and multiply another tile by SiLU(z)."""
    if z.shape[1]:
        gather(z, tokens, channel, lanes, z_t)
        for t in range(tokens.shape[0]):
            z_v = load(z_t, t, 0)
            store(tile, t, 0, load(tile, t, 0) * z_v * sigmoid(z_v))


@inline
def _add_states(tiles: Any, tokens: Any, target: Any) -> None:
    """Add tiles of B's or C's gradient to their array (length, states)."""
    for k in range(tiles.shape[0]):
        first = k * LANES
        scatter_add(tiles[k], tokens, first, min(LANES, target.shape[1] - first), target)


@inline
def _gate_gradient(dy_t: Any, y_t: Any, z_t: Any, steps: Any) -> None:
    """Replace z by its gradient: dy is that of the gated output, y the output before the gate."""
    for t in range(steps):
        z_v = load(z_t, t, 0)
        s = sigmoid(z_v)
        slope = s * (splat(_ONE) + z_v * (splat(_ONE) - s))
        store(z_t, t, 0, load(dy_t, t, 0) * load(y_t, t, 0) * slope)


@inline
def _input_gradients(
    raw_t: Any, skip_bias: Any, soft: Any, u_t: Any, delta_t: Any, dy_t: Any, d_du_t: Any,
    d_decay_t: Any, d_skip_bias: Any, steps: Any,
) -> None:  # fmt: skip
    """Replace d_du by the gradient of u, and d_decay by that of the raw step sizes."""
    skip_v, bias_v = load(skip_bias, 0, 0), load(skip_bias, 1, 0)
    d_skip_v, d_bias_v = load(d_skip_bias, 0, 0), load(d_skip_bias, 1, 0)
    for t in range(steps):
        u_v, dy_v, d_du_v = load(u_t, t, 0), load(dy_t, t, 0), load(d_du_t, t, 0)
        # A enters the kernels in units of ln 2, so an exponent's gradient lacks that factor.
        d_delta_v = d_du_v * u_v + splat(_LN2) * load(d_decay_t, t, 0)
        if soft:
            d_delta_v = d_delta_v * sigmoid(load(raw_t, t, 0) + bias_v)
        store(d_du_t, t, 0, d_du_v * load(delta_t, t, 0) + skip_v * dy_v)
        store(d_decay_t, t, 0, d_delta_v)
        d_skip_v = d_skip_v + dy_v * u_v
        d_bias_v = d_bias_v + d_delta_v
    store(d_skip_bias, 0, 0, d_skip_v)
    store(d_skip_bias, 1, 0, d_bias_v)


_TOKENS, _ROWS, _STATES = "float32[:, :, :]", "float32[:, ::1]", "float32[:, :, :, :]"
_DENSE3, _DENSE4 = "float32[:, :, ::1]", "float32[:, :, :, ::1]"
_OPERANDS = (
    f"{_TOKENS}, {_TOKENS}, {_TOKENS}, {_ROWS}, {_STATES}, {_STATES}, {_ROWS}, boolean, "
    "Tuple((int64, boolean))"
)
_WORK = f"{_DENSE3}, {_DENSE4}, {_DENSE3}, int64, int64"
# How many scratch arrays of each kind the kernels need.
TILES, PER_STATE, PER_LANE = 10, 4, 5


@kernel(f"void({_OPERANDS}, {_TOKENS}, boolean, {_DENSE3}, {_DENSE4}, {_WORK})")
def forward(
    u: Any, delta: Any, z: Any, a: Any, b: Any, c: Any, skip_bias: Any, soft: Any, order: Any,
    y: Any, add: Any, last: Any, checkpoints: Any, tiles: Any, states_t: Any, per_lane: Any,
    start: Any, stop: Any,
) -> None:  # fmt: skip
    """Scan the channel blocks [start, stop).

    Args:
        u: Input (batch, length, channels).
        delta: Raw step sizes, like u.
        z: Gate, like u; it has no channels if there is no gate.
        a: (states, channels), A in units of ln 2: decay = 2 ** (delta * a).
        b: (batch, groups, length, states).
        c: Like b.
        skip_bias: (2, channels): factor of u in the output, and what is added to delta.
        soft: Apply softplus to delta + bias.
        order: (slices, reverse), see `segresmamba.ops.orders`.
        y: Output, like u.
        add: Add the output to y instead of replacing what is there.
        last: (batch, states, channels), the state after the last position.
        checkpoints: (batch, tiles, states, channels), the state before each tile; none are kept
            if it has no tiles.
        tiles: Scratch (TILES, TILE + 1, LANES).
        states_t: Scratch (PER_STATE, ceil(states / LANES), TILE, LANES).
        per_lane: Scratch (PER_LANE, states + 1, LANES).
        start: First block; batch items are slowest, then groups.
        stop: Block after the last.
    """
    length, states = u.shape[1], a.shape[0]
    u_t, delta_t, du_t, y_t, z_t = tiles[0], tiles[1], tiles[2], tiles[3], tiles[4]
    b_t, c_t = states_t[0], states_t[1]
    a_l, h, skip_bias_l = per_lane[0, :states], per_lane[1, :states], per_lane[2, :2]
    positions = np.empty(TILE, np.int64)
    for block in range(start, stop):
        item, group, channel, lanes = _locate(block, u.shape[2], b.shape[1])
        load_lanes(a, channel, lanes, a_l)
        load_lanes(skip_bias, channel, lanes, skip_bias_l)
        _clear(h)
        for begin in range(0, length, TILE):
            steps = min(TILE, length - begin)
            tokens = positions[:steps]
            find_tokens(begin, length, order, tokens)
            if checkpoints.shape[1]:
                store_lanes(h, channel, lanes, checkpoints[item, begin // TILE])
            _load_tile(
                u[item], delta[item], b[item, group], c[item, group], skip_bias_l, soft, tokens,
                channel, lanes, u_t, delta_t, du_t, y_t, b_t, c_t,
            )  # fmt: skip
            for n in range(states):
                k = n // LANES
                _sweep(delta_t, du_t, a_l, b_t[k], c_t[k], n, h, y_t, steps)
            _gate(z[item], tokens, channel, lanes, z_t, y_t)
            if add:
                scatter_add(y_t, tokens, channel, lanes, y[item])
            else:
                scatter(y_t, tokens, channel, lanes, y[item])
        store_lanes(h, channel, lanes, last[item])


@kernel(
    f"void({_OPERANDS}, {_DENSE4}, {_TOKENS}, {_DENSE3}, {_TOKENS}, {_TOKENS}, {_TOKENS}, "
    f"{_DENSE3}, {_STATES}, {_STATES}, {_DENSE3}, {_WORK})"
)
def backward(
    u: Any, delta: Any, z: Any, a: Any, b: Any, c: Any, skip_bias: Any, soft: Any, order: Any,
    checkpoints: Any, dy: Any, d_last: Any, d_u: Any, d_delta: Any, d_z: Any, d_a: Any, d_b: Any,
    d_c: Any, d_skip_bias: Any, tiles: Any, states_t: Any, per_lane: Any, start: Any, stop: Any,
) -> None:  # fmt: skip
    """Gradients of the channel blocks [start, stop).

    Arguments that `forward` has too mean the same here. Besides:
        dy: Gradient of the output (batch, length, channels).
        d_last: Gradient of the last state (batch, states, channels).
        d_u, d_delta, d_z: (batch, length, channels).
        d_a: (batch, states, channels), per unit of A = a * ln 2.
        d_b, d_c: (batch, groups, length, states), added to, not shared with another thread.
        d_skip_bias: (batch, 2, channels).
    """
    length, states = u.shape[1], a.shape[0]
    u_t, delta_t, du_t, y_t, z_t = tiles[0], tiles[1], tiles[2], tiles[3], tiles[4]
    dy_t, d_du_t, d_decay_t, decay_t, h_t = tiles[5], tiles[6], tiles[7], tiles[8], tiles[9]
    b_t, c_t, d_b_t, d_c_t = states_t[0], states_t[1], states_t[2], states_t[3]
    a_l, g, d_a_l = per_lane[0, :states], per_lane[1, :states], per_lane[2, :states]
    skip_bias_l, d_skip_bias_l = per_lane[3, :2], per_lane[4, :2]
    positions = np.empty(TILE, np.int64)
    for block in range(start, stop):
        item, group, channel, lanes = _locate(block, u.shape[2], b.shape[1])
        load_lanes(a, channel, lanes, a_l)
        load_lanes(skip_bias, channel, lanes, skip_bias_l)
        load_lanes(d_last[item], channel, lanes, g)
        _clear(d_a_l)
        _clear(d_skip_bias_l)
        for tile in range((length - 1) // TILE, -1, -1):
            steps = min(TILE, length - tile * TILE)
            tokens = positions[:steps]
            find_tokens(tile * TILE, length, order, tokens)
            _load_tile(
                u[item], delta[item], b[item, group], c[item, group], skip_bias_l, soft, tokens,
                channel, lanes, u_t, delta_t, du_t, y_t, b_t, c_t,
            )  # fmt: skip
            gather(dy[item], tokens, channel, lanes, dy_t)
            _gate(z[item], tokens, channel, lanes, z_t, dy_t)
            _state_gradients(
                delta_t, du_t, a_l, b_t, c_t, dy_t, g, checkpoints[item, tile], channel, lanes,
                decay_t, h_t, y_t, d_du_t, d_decay_t, d_a_l, d_b_t, d_c_t, steps,
            )  # fmt: skip
            _add_states(d_b_t, tokens, d_b[item, group])
            _add_states(d_c_t, tokens, d_c[item, group])
            # The tile of delta holds activated step sizes by now: read the raw ones again.
            gather(delta[item], tokens, channel, lanes, decay_t)
            _input_gradients(
                decay_t, skip_bias_l, soft, u_t, delta_t, dy_t, d_du_t, d_decay_t, d_skip_bias_l,
                steps,
            )  # fmt: skip
            scatter(d_du_t, tokens, channel, lanes, d_u[item])
            scatter(d_decay_t, tokens, channel, lanes, d_delta[item])
            if z.shape[2]:
                # The tile of dy was gated in place: the gate's own gradient wants it as it came.
                gather(dy[item], tokens, channel, lanes, dy_t)
                _gate_gradient(dy_t, y_t, z_t, steps)
                scatter(z_t, tokens, channel, lanes, d_z[item])
        store_lanes(d_a_l, channel, lanes, d_a[item])
        store_lanes(d_skip_bias_l, channel, lanes, d_skip_bias[item])
