"""Compiled depthwise causal convolution with SiLU of the cpu backend, in any scan order.

Arrays are contiguous token-major float32 (length, channels); a call works on a range of positions
of one batch item and releases the GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from segresmamba.ops.cpu.elementary import inline, kernel, sigmoid, token_of

_ONE = np.float32(1.0)
_ROWS, _VECTOR = "float32[:, ::1]", "float32[::1]"
_OPERANDS = f"{_ROWS}, {_ROWS}, {_VECTOR}, Tuple((int64, boolean))"


@inline
def _convolve(x: Any, weight: Any, bias: Any, order: Any, position: Any, out: Any) -> None:
    """Out = bias + sum_w weight[w] * x[position - (W - 1) + w], zero before the sequence."""
    width = weight.shape[0]
    out[:] = bias
    for w in range(max(0, width - 1 - position), width):
        row = x[token_of(position - (width - 1) + w, x.shape[0], order)]
        for c in range(out.shape[0]):
            out[c] += weight[w, c] * row[c]


@kernel(f"void({_OPERANDS}, {_ROWS}, int64, int64)")
def conv_forward(x: Any, weight: Any, bias: Any, order: Any, u: Any, start: Any, stop: Any) -> None:
    """U = SiLU(convolution of x) at the positions [start, stop), written where their tokens are.

    Args:
        x, u: (length, channels).
        weight, bias: (width, channels) and (channels,).
        order: (slices, reverse).
        start, stop: Range of positions.
    """
    for position in range(start, stop):
        out = u[token_of(position, x.shape[0], order)]
        _convolve(x, weight, bias, order, position, out)
        for c in range(out.shape[0]):
            out[c] *= sigmoid(out[c])


@kernel(f"void({_OPERANDS}, {_ROWS}, {_ROWS}, {_ROWS}, {_VECTOR}, int64, int64)")
def conv_backward(
    x: Any, weight: Any, bias: Any, order: Any, d_u: Any, d_x: Any, d_weight: Any, d_bias: Any,
    start: Any, stop: Any,
) -> None:  # fmt: skip
    """Gradients of `conv_forward` for the positions [start, stop), every one added to its array.

    Args:
        x, weight, bias, order: As in the forward.
        d_u: Gradient of u (length, channels).
        d_x: (length, channels); only the tokens of this range are written.
        d_weight, d_bias: (width, channels) and (channels,), not shared with another thread.
        start, stop: Range of positions.
    """
    length, width = x.shape[0], weight.shape[0]
    grad = np.empty(x.shape[1], np.float32)
    # The last W - 1 tokens of the range also feed positions after it.
    for position in range(start, min(stop + width - 1, length)):
        _convolve(x, weight, bias, order, position, grad)
        d_row = d_u[token_of(position, length, order)]
        for c in range(grad.shape[0]):
            s = sigmoid(grad[c])
            grad[c] = d_row[c] * s * (_ONE + grad[c] * (_ONE - s))
        if position < stop:
            for c in range(grad.shape[0]):
                d_bias[c] += grad[c]
        for w in range(width):
            source = position - (width - 1) + w
            if source < 0:
                continue
            token = token_of(source, length, order)
            if position < stop:
                for c in range(grad.shape[0]):
                    d_weight[w, c] += grad[c] * x[token, c]
            if start <= source < stop:
                for c in range(grad.shape[0]):
                    d_x[token, c] += grad[c] * weight[w, c]
