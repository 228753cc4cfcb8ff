"""Last third of a scan: the outputs of each chunk from the state before it.

`chunk_outputs` is one long function: half of it are the arguments (every array has its own
strides), and the rest works on states that must stay in registers.
"""

import triton
import triton.language as tl

from segresmamba.ops.triton.elementary import LOG2E, sigmoid, step_sizes, token_of
from segresmamba.ops.triton.walk import lanes_of_program, pick, places


@triton.jit(do_not_specialize=["slices", "steps", "add"])
def chunk_outputs(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, skip_ptr, bias_ptr,
    start_ptr, gate_ptr, sum_ptr, y_ptr, length, channels, groups, states, slices, steps, add,
    u_batch, u_channel, u_token, delta_batch, delta_channel, delta_token,
    gate_batch, gate_channel, gate_token, sum_batch, sum_channel, sum_token,
    y_batch, y_channel, y_token, B_batch, B_group, B_token, C_batch, C_group, C_token,
    GATED: tl.constexpr, SOFTPLUS: tl.constexpr, IN_A_ROW: tl.constexpr,
    LANES: tl.constexpr, STATES: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Write y = skip * u + C . h, plus `sum` if add, times SiLU(gate) if GATED.

    Grid (chunks, blocks of channels, batch). A chunk has steps * STEP tokens. u, delta, B and C are
    in the order of the scan; gate, sum and y in storage order, to which slices map. y may be sum.

    B, C: rows of STATES float32 to the end of the last chunk, zero outside the sequence.
    start: (batch, channels, states, chunks).
    """
    chunk, item = tl.program_id(0), tl.program_id(2).to(tl.int64)
    chunks = tl.num_programs(0)
    group, channel, exists = lanes_of_program(channels, groups, LANES)
    n = tl.arange(0, STATES)
    real = (n < states)[:, None] & exists[None, :]
    per_state = channel[None, :] * states + n[:, None]
    a = tl.load(A_ptr + per_state, real, 0.0).to(tl.float32) * LOG2E
    h = tl.load(start_ptr + (item * channels * states + per_state) * chunks + chunk, real, 0.0)
    bias = tl.load(bias_ptr + channel, exists, 0.0).to(tl.float32)
    skip = tl.load(skip_ptr + channel, exists, 0.0).to(tl.float32)
    u_ptr += item * u_batch
    delta_ptr += item * delta_batch
    gate_ptr += item * gate_batch
    sum_ptr += item * sum_batch
    y_ptr += item * y_batch
    B_ptr += item * B_batch + group.to(tl.int64) * B_group
    C_ptr += item * C_batch + group.to(tl.int64) * C_group

    row = tl.arange(0, STEP)
    for step in range(steps):
        first = (chunk * steps + step) * STEP
        position = first + row
        inside = (position < length)[:, None] & exists[None, :]
        place = places(position, delta_token, channel, delta_channel)
        raw = tl.load(delta_ptr + place, inside, 0.0).to(tl.float32)
        delta = step_sizes(raw + bias[None, :], inside, SOFTPLUS)
        place = places(position, u_token, channel, u_channel)
        u = tl.load(u_ptr + place, inside, 0.0).to(tl.float32)
        x = delta * u
        y = tl.zeros([STEP, LANES], tl.float32)
        for t in tl.static_range(STEP):
            B = tl.load(B_ptr + (first + t).to(tl.int64) * B_token + n)
            C = tl.load(C_ptr + (first + t).to(tl.int64) * C_token + n)
            # exp(delta A), because a holds A times log2(e).
            decay = tl.exp2(a * pick(delta, row, t)[None, :])
            h = decay * h + pick(x, row, t)[None, :] * B[:, None]
            y = tl.where(row[:, None] == t, tl.sum(h * C[:, None], 0)[None, :], y)
        y += skip[None, :] * u

        # From here on in storage order: the three scans of a volume add up where its tokens lie.
        token = token_of(position, length, slices, IN_A_ROW)
        earlier = inside & (add != 0)
        y += tl.load(sum_ptr + places(token, sum_token, channel, sum_channel), earlier, 0.0)
        if GATED:
            place = places(token, gate_token, channel, gate_channel)
            gate = tl.load(gate_ptr + place, inside, 0.0).to(tl.float32)
            y *= gate * sigmoid(gate)
        tl.store(y_ptr + places(token, y_token, channel, y_channel), y, inside)
