"""The memory that `tri_scan` takes on a GPU while it runs, which no saved tensor shows.

The formulas count what `segresmamba.ops.triton.tri` allocates, its results included, from the
shapes and types of the operands; a test compares them with its allocations. Parameters and their
gradients, a few MiB, are left out.

Shape letters as in `segresmamba.ops.checks`. "b" is the size of an element of x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from segresmamba.ops import chunking
from segresmamba.ops.chunking import cdiv, power_of_two
from segresmamba.ops.kernels import TriOperands


def workspace_bytes(operator: object, arguments: Sequence[Any]) -> int:
    """The most memory that a call of an operator has in use beside its arguments; 0 if unknown."""
    formula = _FORMULAS.get(operator)
    return formula(*arguments) if formula else 0


def tri_forward(*arguments: Any) -> int:
    """Bytes of `segresmamba::tri_scan`."""
    operands = TriOperands(*arguments[:9])
    x_BDL, sizes = operands.x_BDL, _Sizes(operands)
    copied = 0 if chunking.is_dense(x_BDL) else x_BDL.nbytes
    # The sum of the orders in float32, the output, u and delta; rows of B and C, states of pieces.
    held = 4 * x_BDL.numel() + 3 * x_BDL.nbytes + sizes.projected
    return copied + held + 2 * sizes.rows + sizes.states(sizes.pieces)


def tri_backward(dy_BDL: Tensor, operands: list[Tensor], *_: Any) -> int:
    """Bytes of `segresmamba::tri_scan_backward`."""
    x_BDL, z_BDL = operands[:2]
    sizes = _Sizes(TriOperands(*operands))
    copied = sum(t.nbytes for t in (x_BDL, z_BDL, dy_BDL) if not chunking.is_dense(t))
    # The gradient of x and the sum of the orders in float32, u and delta, later their gradients.
    held = 8 * x_BDL.numel() + 2 * x_BDL.nbytes + sizes.projected
    # Adjoints are walked beside the first states; then come the gradients of A, B and C.
    walked = sizes.states(1) + sizes.rows + sizes.states(sizes.pieces)
    if sizes.pieces > 1:  # the adjoints of chunks are copied from those of pieces
        walked += sizes.states(1)
    return copied + held + max(walked, 3 * sizes.states(1) + 2 * sizes.matrix)


class _Sizes:
    """Bytes of the smaller buffers."""

    def __init__(self, operands: TriOperands) -> None:
        batch, channels, length = operands.x_BDL.shape
        states, features = operands.A_KDN.shape[2], operands.x_proj_KPD.shape[1]
        self._chunks = cdiv(length, chunking.CHUNK)
        self._state = 4 * batch * channels * (states + 1)
        self.pieces = chunking.pieces(batch, channels, 1, length)
        """Pieces of a chunk."""
        self.projected = operands.x_BDL.element_size() * batch * features * length
        """Projections of one order."""
        self.rows = 4 * batch * self._chunks * chunking.CHUNK * power_of_two(states)
        """B or C as walks read it."""
        self.matrix = 4 * batch * states * length
        """The gradient of B or of C."""

    def states(self, pieces: int) -> int:
        """States and the sum of delta for each piece."""
        return self._state * self._chunks * pieces


_FORMULAS: dict[object, Callable[..., int]] = {
    torch.ops.segresmamba.tri_scan.default: tri_forward,
    torch.ops.segresmamba.tri_scan_backward.default: tri_backward,
}
