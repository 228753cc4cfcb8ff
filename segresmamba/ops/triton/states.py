"""First two thirds of a scan: what each chunk does to a state, and the states between chunks.

A chunk maps the state before it to `decay * state + end`, where decay = exp(A * sum of delta) and
end is what its own tokens leave behind. Chunks are independent of each other; a short scan over
them gives every chunk the state it starts from. The adjoint recurrence of the backward pass has
the same form with time reversed, C for B and dy for delta * u.
"""

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
def chunk_ends(
    x_ptr, delta_ptr, gate_ptr, A_ptr, matrix_ptr, bias_ptr,
    end_ptr, sum_ptr, length, channels, groups, states, slices,
    x_batch, delta_batch, gate_batch, matrix_batch, matrix_group,
    matrix_state, matrix_token,
    ADJOINT: tl.constexpr, GATED: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """What the tokens of a chunk leave in the state after it, or in the adjoint before it.

    Grid (chunks, blocks of rows, batch).

    x: u, or with ADJOINT the gradient of the output (in storage order: slices and REVERSE map its
    positions to tokens), which is multiplied by SiLU(gate) if GATED. matrix: B, or C with ADJOINT.
    end: (batch, channels, states, chunks). sum: (batch, channels, chunks), the sum of delta.
    """
    chunk, item = tl.program_id(0), tl.program_id(2).to(tl.int64)
    chunks = tl.num_programs(0)
    group, channel, exists = rows_of_program(channels, groups, ROWS)
    position = chunk * CHUNK + tl.arange(0, CHUNK)
    within = position < length
    inside = exists[:, None] & within[None, :]
    row = channel.to(tl.int64)[:, None] * length

    raw = tl.load(delta_ptr + item * delta_batch + row + position[None, :], inside, 0.0)
    bias = tl.load(bias_ptr + channel, exists, 0.0).to(tl.float32)
    delta = step_sizes(raw.to(tl.float32), bias, inside, SOFTPLUS)
    if ADJOINT:
        token = token_of(position, length, slices, REVERSE)
        x = tl.load(x_ptr + item * x_batch + row + token[None, :], inside, 0.0).to(tl.float32)
        if GATED:
            gate = tl.load(gate_ptr + item * gate_batch + row + token[None, :], inside, 0.0)
            gate = gate.to(tl.float32)
            x *= gate * sigmoid(gate)
        distance = tl.cumsum(delta, 1)
    else:
        x = tl.load(x_ptr + item * x_batch + row + position[None, :], inside, 0.0).to(tl.float32)
        x *= delta
        distance = tl.cumsum(delta, 1, reverse=True) - delta

    per_channel = item * channels + channel
    tl.store(sum_ptr + per_channel * chunks + chunk, tl.sum(delta, 1), exists)
    matrix_ptr += item * matrix_batch + group.to(tl.int64) * matrix_group
    place = shared_row(position, ROWS) * matrix_token
    for n in range(states):
        a = tl.load(A_ptr + channel * states + n, exists, 0.0).to(tl.float32) * LOG2E
        m = tl.load(matrix_ptr + n * wide(matrix_state) + place, inside, 0.0).to(tl.float32)
        end = tl.sum(tl.exp2(a[:, None] * distance) * x * m, 1)
        tl.store(end_ptr + (per_channel * states + n) * chunks + chunk, end, exists)


@triton.jit
def pass_states(
    end_ptr, sum_ptr, A_ptr, initial_ptr, start_ptr, last_ptr,
    channels, states, chunks,
    BACKWARDS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The state from which each chunk starts, and the one after the last chunk.

    Grid (blocks of channels * states rows, batch). Chunks are walked from the last to the first if
    BACKWARDS.

    end, start: (batch, channels, states, chunks). initial, last: (batch, channels, states).
    """
    item = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = row < channels * states
    a = tl.load(A_ptr + row, exists, 0.0).to(tl.float32) * LOG2E
    state = tl.load(initial_ptr + item * channels * states + row, exists, 0.0)
    sum_ptr += (item * channels + row // states) * chunks
    end_ptr += (item * channels * states + row) * chunks
    start_ptr += (item * channels * states + row) * chunks
    tl.store(start_ptr + (chunks - 1 if BACKWARDS else 0), state, exists)

    offset = tl.arange(0, BLOCK)
    blocks = tl.cdiv(chunks, BLOCK)
    for block in range(blocks):
        chunk = (blocks - 1 - block if BACKWARDS else block) * BLOCK + offset
        there = exists[:, None] & (chunk < chunks)[None, :]
        delta_sum = tl.load(sum_ptr[:, None] + chunk[None, :], there, 0.0)
        end = tl.load(end_ptr[:, None] + chunk[None, :], there, 0.0)
        decay = tl.exp2(a[:, None] * delta_sum)
        entry = offset[None, :] == (BLOCK - 1 if BACKWARDS else 0)
        end = tl.where(entry, end + decay * state[:, None], end)
        _, after = tl.associative_scan((decay, end), 1, combine, reverse=BACKWARDS)
        following = chunk + (-1 if BACKWARDS else 1)
        known = exists[:, None] & ((following >= 0) & (following < chunks))[None, :]
        tl.store(start_ptr[:, None] + following[None, :], after, known)
        leaving = offset[None, :] == (0 if BACKWARDS else BLOCK - 1)
        state = tl.sum(tl.where(leaving, after, 0.0), 1)
    tl.store(last_ptr + item * channels * states + row, state, exists)
