"""What a kernel backend offers to the operators: the module `segresmamba.ops.<backend>`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, Protocol, cast

from torch import Tensor


class ScanOperands(NamedTuple):
    """Tensors that a scan reads; B and C in their grouped form, G groups of D / G channels."""

    u_BDL: Tensor
    delta_BDL: Tensor
    A_DN: Tensor
    B_BGNL: Tensor
    C_BGNL: Tensor
    D_D: Tensor | None
    z_BDL: Tensor | None
    bias_D: Tensor | None


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

    def tri_forward(self, operands: Sequence[Tensor], num_slices: int) -> Tensor:
        """Output of `tri_scan`, as `torch.empty_like(x)` lays it out."""

    def tri_backward(self, dy: Tensor, operands: Sequence[Tensor], num_slices: int) -> list[Tensor]:
        """Gradients of the operands of `tri_scan`, each as `torch.empty_like` lays it out."""


def load(backend: str) -> Kernels:
    """The module of a kernel backend, imported at its first use."""
    return cast("Kernels", import_module(f"segresmamba.ops.{backend}"))
