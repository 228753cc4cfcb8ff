"""First two thirds of a scan: what each chunk does to a state, and the states between chunks.

A chunk maps the state before it to `decay * state + end`, where decay = exp(A * sum of delta) and
end is what its own tokens leave behind. Chunks are independent of each other; a short scan over
them gives every chunk the state it starts from. The adjoint recurrence of the backward pass has
the same form with time reversed, C for B and dy for delta * u. One kernel therefore serves both
passes; that, and the arguments with their strides, make `chunk_ends` long.
"""

import triton
import triton.language as tl

from segresmamba.ops.triton.elementary import LOG2E, combine, sigmoid, step_sizes, token_of
from segresmamba.ops.triton.walk import lanes_of_program, pick, places


@triton.jit(do_not_specialize=["slices", "steps"])
def chunk_ends(
    x_ptr, delta_ptr, gate_ptr, A_ptr, matrix_ptr, bias_ptr,
    end_ptr, sum_ptr, length, channels, groups, states, slices, steps,
    x_batch, x_channel, x_token, delta_batch, delta_channel, delta_token,
    gate_batch, gate_channel, gate_token, matrix_batch, matrix_group, matrix_token,
    ADJOINT: tl.constexpr, GATED: tl.constexpr, SOFTPLUS: tl.constexpr, IN_A_ROW: tl.constexpr,
    LANES: tl.constexpr, STATES: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The part of a chunk's tokens in the state after it, or with ADJOINT in the adjoint before it.

    Grid (chunks, blocks of channels, batch). A chunk has steps * STEP tokens.

    x: u, or with ADJOINT the gradient of the output (in storage order: slices map its positions to
    tokens), which is multiplied by SiLU(gate) if GATED. matrix: B, or C with ADJOINT,
    rows of STATES float32 to the end of the last chunk, zero outside the sequence.
    end: (batch, channels, states, chunks). sum: (batch, channels, chunks), the sum of delta.
    """
    chunk, item = tl.program_id(0), tl.program_id(2).to(tl.int64)
    chunks = tl.num_programs(0)
    group, channel, exists = lanes_of_program(channels, groups, LANES)
    n = tl.arange(0, STATES)
    # Triton's tiles have sizes of powers of two: states and channels beyond the real ones are zero.
    real = (n < states)[:, None] & exists[None, :]
    per_state = channel[None, :] * states + n[:, None]
    a = tl.load(A_ptr + per_state, real, 0.0).to(tl.float32) * LOG2E
    bias = tl.load(bias_ptr + channel, exists, 0.0).to(tl.float32)
    x_ptr += item * x_batch
    delta_ptr += item * delta_batch
    gate_ptr += item * gate_batch
    matrix_ptr += item * matrix_batch + group.to(tl.int64) * matrix_group

    row = tl.arange(0, STEP)
    state = tl.zeros([STATES, LANES], tl.float32)
    delta_sum = tl.zeros([LANES], tl.float32)
    for step in range(steps):
        first = (chunk * steps + (steps - 1 - step if ADJOINT else step)) * STEP
        position = first + row
        inside = (position < length)[:, None] & exists[None, :]
        place = places(position, delta_token, channel, delta_channel)
        raw = tl.load(delta_ptr + place, inside, 0.0).to(tl.float32)
        delta = step_sizes(raw + bias[None, :], inside, SOFTPLUS)
        delta_sum += tl.sum(delta, 0)
        if ADJOINT:
            token = token_of(position, length, slices, IN_A_ROW)
            place = places(token, x_token, channel, x_channel)
            x = tl.load(x_ptr + place, inside, 0.0).to(tl.float32)
            if GATED:
                place = places(token, gate_token, channel, gate_channel)
                gate = tl.load(gate_ptr + place, inside, 0.0).to(tl.float32)
                x *= gate * sigmoid(gate)
        else:
            place = places(position, x_token, channel, x_channel)
            x = delta * tl.load(x_ptr + place, inside, 0.0).to(tl.float32)
        for t in tl.static_range(
            STEP - 1 if ADJOINT else 0, -1 if ADJOINT else STEP, -1 if ADJOINT else 1
        ):
            m = tl.load(matrix_ptr + (first + t).to(tl.int64) * matrix_token + n)
            decay = tl.exp2(a * pick(delta, row, t)[None, :])
            own = pick(x, row, t)[None, :] * m[:, None]
            # The adjoint takes in its token before it decays, the state after.
            state = decay * (state + own) if ADJOINT else decay * state + own

    per_channel = item * channels + channel
    tl.store(sum_ptr + per_channel * chunks + chunk, delta_sum, exists)
    place = item * channels * states + per_state
    tl.store(end_ptr + place * chunks + chunk, state, real)


@triton.jit(do_not_specialize=["chunks", "backwards"])
def pass_states(
    state_ptr, sum_ptr, A_ptr, initial_ptr, last_ptr,
    channels, states, chunks, backwards,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Put the state from which each chunk starts in the place of what the chunk leaves behind.

    Grid (blocks of channels * states rows, batch). Chunks are walked from the last to the first if
    backwards.

    state: (batch, channels, states, chunks). sum: (batch, channels, chunks), the sum of delta.
    initial, last: (batch, channels, states), the states before the first chunk of the walk and
    after its last.
    """
    item = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = row < channels * states
    a = tl.load(A_ptr + row, exists, 0.0).to(tl.float32) * LOG2E
    state = tl.load(initial_ptr + item * channels * states + row, exists, 0.0)
    sum_ptr += (item * channels + row // states) * chunks
    state_ptr += (item * channels * states + row) * chunks

    offset = tl.arange(0, BLOCK)
    for first in range(0, chunks, BLOCK):
        walked = first + offset
        chunk = walked if backwards == 0 else chunks - 1 - walked
        there = exists[:, None] & (walked < chunks)[None, :]
        delta_sum = tl.load(sum_ptr[:, None] + chunk[None, :], there, 0.0)
        end = tl.load(state_ptr[:, None] + chunk[None, :], there, 0.0)
        decay = tl.exp2(a[:, None] * delta_sum)
        # What the previous block of chunks left enters through the first chunk of this one.
        end = tl.where(offset[None, :] == 0, end + decay * state[:, None], end)
        _, after = tl.associative_scan((decay, end), 1, combine)
        # Every thread has read what the others now overwrite.
        tl.debug_barrier()
        tl.store(state_ptr + (first if backwards == 0 else chunks - 1 - first), state, exists)
        following = walked + 1
        known = exists[:, None] & ((offset < BLOCK - 1) & (following < chunks))[None, :]
        place = following if backwards == 0 else chunks - 1 - following
        tl.store(state_ptr[:, None] + place[None, :], after, known)
        state = tl.sum(tl.where(offset[None, :] == BLOCK - 1, after, 0.0), 1)
    tl.store(last_ptr + item * channels * states + row, state, exists)
