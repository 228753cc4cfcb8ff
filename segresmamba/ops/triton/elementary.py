"""Index arithmetic and elementary functions of all Triton kernels, in float32.

Exponentials are exp2, which the hardware computes; the logarithm is a series because
log(1 + t) would lose the small step sizes of softplus.
"""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def combine(decay_1, value_1, decay_2, value_2):
    """Two steps x -> decay * x + value as one, which makes the recurrence associative."""
    return decay_1 * decay_2, decay_2 * value_1 + value_2


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def softplus(x):
    """max(x, 0) + log1p(exp(-|x|)), the logarithm as the series of 2 atanh(t / (2 + t))."""
    t = tl.exp2(-tl.abs(x) * LOG2E)
    s = t / (2.0 + t)
    q = s * s
    p = q * (1 / 13) + 1 / 11
    p = p * q + 1 / 9
    p = p * q + 1 / 7
    p = p * q + 1 / 5
    p = p * q + 1 / 3
    p = p * q + 1.0
    return tl.where(x < 0.0, 0.0, x) + 2.0 * s * p


@triton.jit
def token_of(position, length, slices, IN_A_ROW: tl.constexpr):
    """Token that stands at a position of the sequence; see segresmamba.ops.orders.

    slices are known at run time only, so that one kernel serves all orders; 0 reads from the end.
    IN_A_ROW lets the compiler see that neighbours lie side by side, and read them at once.
    """
    token = position
    if not IN_A_ROW:
        if slices == 0:
            token = length - 1 - position
        else:
            token = (position % slices) * (length // slices) + position // slices
    return token


@triton.jit
def step_sizes(delta, inside, SOFTPLUS: tl.constexpr):
    """Step sizes of the recurrence from biased ones: after softplus, and zero outside."""
    # A step of size zero leaves the state as it is: tokens beyond the sequence change nothing.
    if SOFTPLUS:
        delta = softplus(delta)
    return tl.where(inside, delta, 0.0)
