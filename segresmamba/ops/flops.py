"""The operations that `torch.utils.flop_counter` counts for the scans, by their operands' shapes.

A custom operator would count as nothing without these formulas.

Per state and token a forward scan multiplies and adds 7 times (exponent 1, exponential 1, input 1,
state 2, output 2); the backward repeats the first five and adds 14 for the adjoint and the
gradients.
"""

from __future__ import annotations

from typing import Any

from segresmamba.ops.orders import ORDERS

_FORWARD, _BACKWARD = 7, 19
Shape = tuple[int, ...]


def scan(u: Shape, delta: Shape, A: Shape, *_: Any, **__: Any) -> int:
    """Operations of `segresmamba::selective_scan`."""
    return _FORWARD * _size(u) * A[1]


def scan_backward(
    dy: Shape, d_last: Shape | None, u: Shape, delta: Shape, A: Shape, *_: Any, **__: Any
) -> int:
    """Operations of `segresmamba::selective_scan_backward`."""
    return _BACKWARD * _size(u) * A[1]


def tri(*arguments: Any, **_: Any) -> int:
    """Operations of `segresmamba::tri_scan`."""
    products, states = _tri_counts(*arguments[:9])
    return len(ORDERS) * (products + _FORWARD * states)


def tri_backward(dy: Shape, operands: list[Shape], *_: Any, **__: Any) -> int:
    """Operations of `segresmamba::tri_scan_backward`, which recomputes the forward pass."""
    products, states = _tri_counts(*operands)
    return len(ORDERS) * (3 * products + (_FORWARD + _BACKWARD) * states)


def _tri_counts(x: Shape, *parameters: Shape) -> tuple[int, int]:
    """Operations of the convolution and projections, and states times tokens, of one order."""
    _, conv_weight, _, x_proj, dt_proj, _, A, _ = parameters
    return 2 * _size(x) * (conv_weight[2] + x_proj[1] + dt_proj[2]), _size(x) * A[2]


def _size(x: Shape) -> int:
    batch, channels, length = x
    return batch * channels * length
