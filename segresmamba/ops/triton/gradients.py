"""Backward pass of a scan: gradients of each chunk from the state before and the adjoint after it.

    g_l = C_l * dy_l + decay_(l+1) * g_(l+1)    with    h_l = decay_l * h_(l-1) + B_l * (delta u)_l

The kernel is long because it is one kernel: each tile of u, delta, dy, B and C is read from memory
once and serves all gradients. Split in two, both halves would read the tiles and recompute states
and adjoints.
"""

import triton
import triton.language as tl

from segresmamba.ops.triton.elementary import (
    LN2,
    LOG2E,
    combine,
    sigmoid,
    step_sizes,
    token_of,
)


@triton.jit
def _rows_of_program(channels, groups, ROWS: tl.constexpr):
    """(group, channels, which of them exist) of the second grid axis; a block stays in a group."""
    width = channels // groups
    blocks = tl.cdiv(width, ROWS)
    group = tl.program_id(1) // blocks
    row = tl.program_id(1) % blocks * ROWS + tl.arange(0, ROWS)
    return group, group * width + row, row < width


@triton.jit
def _wide(number):
    """An integer argument with 64 bits, because products with it may need more than 32."""
    return tl.full([], number, tl.int64)


@triton.jit
def _states_and_adjoints(
    a, delta, later, input_, d_output, start, carried, offset, CHUNK: tl.constexpr
):  # fmt: skip
    """(h, g) of every token of a tile; later is the delta of the token after each."""
    # The state that comes in belongs to the first token, the adjoint that comes in to the last.
    decay = tl.exp2(a[:, None] * delta)
    value = tl.where(offset[None, :] == 0, input_ + decay * start[:, None], input_)
    _, h = tl.associative_scan((decay, value), 1, combine)
    decay = tl.exp2(a[:, None] * later)
    last = offset[None, :] == CHUNK - 1
    value = tl.where(last, d_output + carried[:, None], d_output)
    _, g = tl.associative_scan((decay, value), 1, combine, reverse=True)
    return h, g


@triton.jit(do_not_specialize=["slices", "add", "last"])
def chunk_gradients(  # noqa: PLR0915 - one kernel, see above
    dy_ptr, u_ptr, delta_ptr, next_ptr, A_ptr, B_ptr, C_ptr, skip_ptr,
    bias_ptr, start_ptr, carried_ptr, gate_ptr, sum_ptr,
    d_u_ptr, d_delta_ptr, d_A_ptr, d_B_ptr, d_C_ptr, d_skip_ptr,
    d_bias_ptr, length, channels, groups, states,
    slices, add, last, dy_batch, u_batch, delta_batch, gate_batch, B_batch,
    B_group, B_state, B_token, C_batch, C_group, C_state,
    C_token,
    GATED: tl.constexpr, SOFTPLUS: tl.constexpr, IN_A_ROW: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Gradients of one scan whose output y, summed over several scans, is gated by SiLU(gate).

    Grid (chunks, blocks of rows, batch). dy, gate and sum are in storage order, all others in the
    order of the scan.

    next: (batch, channels, chunks), the first delta of each chunk. start, carried: (batch,
    channels, states, chunks), the state before each chunk and the adjoint that comes from the chunk
    after. sum: dense (batch, channels, length), the y of earlier scans if add. This scan's y is
    added to it; the last scan then turns the sum into the gradient of the gate.
    d_u, d_delta: dense; they may be u and delta, of which a program reads its own chunk alone, and
    before it writes. d_A: (batch, channels, states, chunks). d_B, d_C: dense
    (batch, groups, states, length) float32, added to. d_skip, d_bias: (batch, channels, chunks).
    """
    chunk, item = tl.program_id(0), tl.program_id(2).to(tl.int64)
    chunks = tl.num_programs(0)
    group, channel, exists = _rows_of_program(channels, groups, ROWS)
    offset = tl.arange(0, CHUNK)
    position = chunk * CHUNK + offset
    within = position < length
    inside = exists[:, None] & within[None, :]
    row = channel.to(tl.int64)[:, None] * length
    dense = item * channels * length + row

    bias = tl.load(bias_ptr + channel, exists, 0.0).to(tl.float32)
    skip = tl.load(skip_ptr + channel, exists, 0.0).to(tl.float32)
    delta_ptr += item * delta_batch
    raw = tl.load(delta_ptr + row + position[None, :], inside, 0.0).to(tl.float32)
    delta = step_sizes(raw + bias[:, None], inside, SOFTPLUS)
    follows = exists[:, None] & (position + 1 < length)[None, :]
    same = follows & (offset < CHUNK - 1)[None, :]
    later = tl.load(delta_ptr + row + position[None, :] + 1, same, 0.0).to(tl.float32)
    per_channel = item * channels + channel
    following = exists & ((chunk + 1) * CHUNK < length)
    first = tl.load(next_ptr + per_channel * chunks + chunk + 1, following, 0.0).to(tl.float32)
    later = tl.where((offset == CHUNK - 1)[None, :], first[:, None], later)
    later = step_sizes(later + bias[:, None], follows, SOFTPLUS)
    u = tl.load(u_ptr + item * u_batch + row + position[None, :], inside, 0.0).to(tl.float32)

    token = token_of(position, length, slices, IN_A_ROW)[None, :]
    d_out = tl.load(dy_ptr + item * dy_batch + row + token, inside, 0.0).to(tl.float32)
    dy = d_out
    if GATED:
        gate = tl.load(gate_ptr + item * gate_batch + row + token, inside, 0.0).to(tl.float32)
        open_ = sigmoid(gate)
        dy = d_out * gate * open_

    y = skip[:, None] * u
    d_input = tl.zeros([ROWS, CHUNK], tl.float32)
    d_exponent = tl.zeros([ROWS, CHUNK], tl.float32)
    # Positions as a full tile: B and C are then loaded in the layout of the rows. A single row
    # would change its layout in each use.
    place = position.to(tl.int64)[None, :] + tl.zeros([ROWS, 1], tl.int64)
    B_ptr += item * B_batch + group.to(tl.int64) * B_group
    C_ptr += item * C_batch + group.to(tl.int64) * C_group
    d_matrix = (item * groups + group) * states * length + position
    for n in range(states):
        a = tl.load(A_ptr + channel * states + n, exists, 0.0).to(tl.float32) * LOG2E
        per_state = (per_channel * states + n) * chunks + chunk
        start = tl.load(start_ptr + per_state, exists, 0.0)
        carried = tl.load(carried_ptr + per_state, exists, 0.0)
        B = tl.load(B_ptr + n * _wide(B_state) + place * B_token, inside, 0.0).to(tl.float32)
        C = tl.load(C_ptr + n * _wide(C_state) + place * C_token, inside, 0.0).to(tl.float32)

        own = delta * u * B
        h, g = _states_and_adjoints(a, delta, later, own, dy * C, start, carried, offset, CHUNK)
        y += h * C
        d_input += g * B
        # decay * (state before) is the state without this token's own input.
        exponent = g * (h - own)
        d_exponent += exponent * (a[:, None] * LN2)
        tl.store(d_A_ptr + per_state, tl.sum(exponent * delta, 1), exists)
        # Programs whose channels share B and C add to the same place, in any order: the last bits
        # differ from run to run.
        d_state = d_matrix + n * _wide(length)
        tl.atomic_add(d_B_ptr + d_state, tl.sum(g * delta * u, 0), within, sem="relaxed")
        tl.atomic_add(d_C_ptr + d_state, tl.sum(h * dy, 0), within, sem="relaxed")

    d_delta = d_input * u + d_exponent
    if SOFTPLUS:  # whose derivative is the sigmoid
        d_delta *= sigmoid(raw + bias[:, None])
    d_delta = tl.where(inside, d_delta, 0.0)
    tl.store(d_u_ptr + dense + position[None, :], d_input * delta + skip[:, None] * dy, inside)
    tl.store(d_delta_ptr + dense + position[None, :], d_delta, inside)
    tl.store(d_skip_ptr + per_channel * chunks + chunk, tl.sum(dy * u, 1), exists)
    tl.store(d_bias_ptr + per_channel * chunks + chunk, tl.sum(d_delta, 1), exists)
    if GATED:
        y += tl.load(sum_ptr + dense + token, inside & (add != 0), 0.0)
        slope = open_ * (1.0 + gate * (1.0 - open_))
        y = tl.where(last != 0, d_out * y * slope, y)
        tl.store(sum_ptr + dense + token, y, inside)
