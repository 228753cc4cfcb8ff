"""Last third of a scan: the outputs of each chunk from the state before it."""

import triton
import triton.language as tl

from segresmamba.ops.triton.elementary import (
    LOG2E,
    combine,
    rows_of_program,
    shared_row,
    sigmoid,
    step_sizes,
    token_of,
    wide,
)


@triton.jit
def chunk_outputs(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, skip_ptr, bias_ptr,
    start_ptr, gate_ptr, sum_ptr, y_ptr, length, channels,
    groups, states, slices, u_batch, delta_batch, gate_batch,
    B_batch, B_group, B_state, B_token, C_batch, C_group,
    C_state, C_token,
    ADD: tl.constexpr, GATED: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Write y = skip * u + C . h, plus `sum` if ADD, times SiLU(gate) if GATED.

    Grid (chunks, blocks of rows, batch). u, delta, B and C are in the order of the scan; gate, sum
    and y in storage order, to which slices and REVERSE map.

    start: (batch, channels, states, chunks). sum, y: dense (batch, channels, length); y may be sum.
    """
    chunk, item = tl.program_id(0), tl.program_id(2).to(tl.int64)
    chunks = tl.num_programs(0)
    group, channel, exists = rows_of_program(channels, groups, ROWS)
    offset = tl.arange(0, CHUNK)
    position = chunk * CHUNK + offset
    within = position < length
    inside = exists[:, None] & within[None, :]
    row = channel.to(tl.int64)[:, None] * length

    raw = tl.load(delta_ptr + item * delta_batch + row + position[None, :], inside, 0.0)
    bias = tl.load(bias_ptr + channel, exists, 0.0).to(tl.float32)
    delta = step_sizes(raw.to(tl.float32), bias, inside, SOFTPLUS)
    u = tl.load(u_ptr + item * u_batch + row + position[None, :], inside, 0.0).to(tl.float32)
    skip = tl.load(skip_ptr + channel, exists, 0.0).to(tl.float32)
    y = skip[:, None] * u
    u *= delta

    place = shared_row(position, ROWS)
    B_ptr += item * B_batch + group.to(tl.int64) * B_group
    C_ptr += item * C_batch + group.to(tl.int64) * C_group
    first_state = (item * channels + channel) * states
    for n in range(states):
        a = tl.load(A_ptr + channel * states + n, exists, 0.0).to(tl.float32) * LOG2E
        start = tl.load(start_ptr + (first_state + n) * chunks + chunk, exists, 0.0)
        B = tl.load(B_ptr + n * wide(B_state) + place * B_token, inside, 0.0).to(tl.float32)
        C = tl.load(C_ptr + n * wide(C_state) + place * C_token, inside, 0.0).to(tl.float32)
        decay = tl.exp2(a[:, None] * delta)
        value = u * B
        value = tl.where(offset[None, :] == 0, value + decay * start[:, None], value)
        _, h = tl.associative_scan((decay, value), 1, combine)
        y += h * C

    token = row + token_of(position, length, slices, REVERSE)[None, :]
    if ADD:
        y += tl.load(sum_ptr + item * channels * length + token, inside, 0.0)
    if GATED:
        gate = tl.load(gate_ptr + item * gate_batch + token, inside, 0.0).to(tl.float32)
        y *= gate * sigmoid(gate)
    tl.store(y_ptr + item * channels * length + token, y, inside)
