"""The operands of both operators, and what a kernel backend offers to them.

Operands travel as one tuple from the public functions down to the kernels. A kernel backend is the
module `segresmamba.ops.<backend>`, imported when it is first used: numba and Triton are slow to
import, and a machine may lack either.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, Protocol, cast

from torch import Tensor

from segresmamba.ops.orders import ORDERS, OrderMap, order_map


class ScanOperands(NamedTuple):
    """The tensors that `selective_scan` reads, in the order and under the names of mamba-ssm.

    Kernels read B and C in their grouped form (B, G, N, L), G groups of D / G channels each. A
    backward pass returns its gradients in this tuple too.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None

    def gradients_from(self, found: ScanOperands) -> list[Tensor]:
        """Gradients of the operands that are present, contiguous and in the operands' dtypes."""
        return [
            gradient.to(operand.dtype).contiguous()
            for operand, gradient in zip(self, found, strict=True)
            if operand is not None and gradient is not None
        ]


class Direction(NamedTuple):
    """One of the three orders of `tri_scan`, with its parameters."""

    order: OrderMap
    conv_weight_DW: Tensor
    conv_bias_D: Tensor
    x_proj_PD: Tensor
    dt_proj_DR: Tensor
    dt_bias_D: Tensor
    A_DN: Tensor
    D_D: Tensor


class TriOperands(NamedTuple):
    """The tensors that `tri_scan` reads; K = 3 orders, W convolution width, R rank, P = R + 2 N."""

    x_BDL: Tensor
    z_BDL: Tensor
    conv_weight_KDW: Tensor
    conv_bias_KD: Tensor
    x_proj_KPD: Tensor
    dt_proj_KDR: Tensor
    dt_bias_KD: Tensor
    A_KDN: Tensor
    D_KD: Tensor

    def directions(self, num_slices: int) -> list[Direction]:
        """Cut the stacked parameters into orders."""
        _, _, *parameters = self
        cut = zip(*(p.unbind(0) for p in parameters), strict=True)
        return [
            Direction(order_map(order, num_slices), *of_order)
            for order, of_order in zip(ORDERS, cut, strict=True)
        ]


class Kernels(Protocol):
    """Forward and backward passes, called below autograd with checked tensors."""

    def checkpoint_shape(self, operands: ScanOperands) -> Sequence[int]:
        """Shape of the float32 states that the forward scan keeps for the backward."""

    def scan_forward(
        self, operands: ScanOperands, softplus: bool, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output like u, last state (B, D, N) float32, checkpoints (of shape (0,) unless keep)."""

    def scan_backward(
        self,
        dy_BDL: Tensor,
        d_last_BDN: Tensor | None,
        operands: ScanOperands,
        checkpoints: Tensor,
        softplus: bool,
    ) -> list[Tensor]:
        """Contiguous gradients of the operands that are present, in their order and dtype."""

    def tri_forward(self, operands: TriOperands, num_slices: int) -> Tensor:
        """Output of `tri_scan`, as `torch.empty_like(x)` lays it out."""

    def tri_backward(self, dy: Tensor, operands: TriOperands, num_slices: int) -> list[Tensor]:
        """Gradients of the operands of `tri_scan`, each as `torch.empty_like` lays it out."""


def load(backend: str) -> Kernels:
    """The module of a kernel backend, imported at its first use."""
    return cast("Kernels", import_module(f"segresmamba.ops.{backend}"))
