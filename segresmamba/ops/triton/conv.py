"""Depthwise causal convolution with SiLU, read in the order of a scan.

It writes its result in that order: the matrix products and the scan that follow then read memory
in sequence.
"""

import triton
import triton.language as tl

from segresmamba.ops.triton.elementary import sigmoid, token_of


@triton.jit
def _convolve(
    x_ptr, weight_ptr, bias, channel, exists, position, length,
    slices, IN_A_ROW: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """The bias + sum_w weight[w] * x at the WIDTH positions up to each of a tile."""
    out = tl.zeros([ROWS, CHUNK], tl.float32) + bias[:, None]
    for w in tl.static_range(WIDTH):
        source = position - (WIDTH - 1) + w
        there = exists[:, None] & ((source >= 0) & (source < length))[None, :]
        token = token_of(source, length, slices, IN_A_ROW)
        x = tl.load(x_ptr + channel.to(tl.int64)[:, None] * length + token[None, :], there, 0.0)
        weight = tl.load(weight_ptr + channel * WIDTH + w, exists, 0.0).to(tl.float32)
        out += weight[:, None] * x.to(tl.float32)
    return out


@triton.jit(do_not_specialize=["slices"])
def convolve(
    x_ptr, weight_ptr, bias_ptr, u_ptr, length, channels,
    slices, x_batch,
    IN_A_ROW: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Write u = SiLU(convolution of x). Grid (chunks, blocks of rows, batch).

    x: storage order, dense rows. weight: (channels, WIDTH). u: dense (batch, channels, length), in
    the order of the scan.
    """
    item = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    exists = channel < channels
    position = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    bias = tl.load(bias_ptr + channel, exists, 0.0).to(tl.float32)
    out = _convolve(
        x_ptr + item * x_batch, weight_ptr, bias, channel, exists, position, length, slices,
        IN_A_ROW, ROWS, CHUNK, WIDTH,
    )  # fmt: skip
    u = out * sigmoid(out)
    place = (item * channels + channel[:, None]) * length + position[None, :]
    tl.store(u_ptr + place, u, exists[:, None] & (position < length)[None, :])


@triton.jit(do_not_specialize=["slices"])
def convolve_gradients(
    d_u_ptr, x_ptr, weight_ptr, bias_ptr, d_x_ptr, d_weight_ptr,
    d_bias_ptr, length, channels, slices, x_batch,
    IN_A_ROW: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of `convolve`, that of x added to d_x. Grid (chunks, blocks of rows, batch).

    d_u: dense, in the order of the scan. d_x: dense (batch, channels, length) float32, in storage
    order. d_weight: (batch, chunks, channels, WIDTH). d_bias: (batch, chunks, channels).
    """
    chunk, item = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    exists = channel < channels
    position = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = exists[:, None] & (position < length)[None, :]
    bias = tl.load(bias_ptr + channel, exists, 0.0).to(tl.float32)
    x_ptr += item * x_batch
    row = channel.to(tl.int64)[:, None] * length
    dense = item * channels * length + row
    part = (item * tl.num_programs(0) + chunk) * channels + channel

    d_x = tl.zeros([ROWS, CHUNK], tl.float32)
    for later in tl.static_range(WIDTH):
        # This token also feeds the WIDTH - 1 positions after its own. Each program recomputes
        # their outputs, so that none has to wait for another.
        target = position + later
        there = exists[:, None] & (target < length)[None, :]
        out = _convolve(
            x_ptr, weight_ptr, bias, channel, exists, target, length, slices, IN_A_ROW, ROWS, CHUNK,
            WIDTH,
        )  # fmt: skip
        s = sigmoid(out)
        d_out = tl.load(d_u_ptr + dense + target[None, :], there, 0.0).to(tl.float32)
        d_out *= s * (1.0 + out * (1.0 - s))
        weight = tl.load(weight_ptr + channel * WIDTH + (WIDTH - 1 - later), exists, 0.0)
        d_x += weight.to(tl.float32)[:, None] * d_out
        if later == 0:  # the token's own position, which belongs to this program alone
            d_out = tl.where(inside, d_out, 0.0)
            tl.store(d_bias_ptr + part, tl.sum(d_out, 1), exists)
            for w in tl.static_range(WIDTH):
                source = position - (WIDTH - 1) + w
                known = inside & (source >= 0)[None, :]
                token = token_of(source, length, slices, IN_A_ROW)
                x = tl.load(x_ptr + row + token[None, :], known, 0.0).to(tl.float32)
                tl.store(d_weight_ptr + part * WIDTH + w, tl.sum(d_out * x, 1), exists)

    place = dense + token_of(position, length, slices, IN_A_ROW)[None, :]
    before = tl.load(d_x_ptr + place, inside, 0.0)
    tl.store(d_x_ptr + place, before + d_x, inside)
