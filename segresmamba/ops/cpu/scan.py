"""The cpu backend's scan: hands tensors to the compiled kernels and divides the work among threads.

Everything is computed in float32, whatever the inputs are. Kernels are compiled at their first use,
which takes about 10 s of processor time (docs/performance.md), and kept on disk. Their modules are
therefore imported inside the functions that call them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from segresmamba.ops.cpu.layout import LANES, TILE, channel_blocks, tiles
from segresmamba.ops.cpu.threads import run, shares
from segresmamba.ops.kernels import ScanOperands
from segresmamba.ops.orders import OrderMap

Array = np.ndarray[Any, np.dtype[Any]]

_IN_A_ROW = OrderMap(slices=1, reverse=False)


class Operands(NamedTuple):
    """Operands of both scan kernels: float32 views in the order of the kernels' arguments."""

    u_BLD: Tensor
    delta_BLD: Tensor
    z_BLD: Tensor
    a_ND: Tensor
    b_BGLN: Tensor
    c_BGLN: Tensor
    skip_bias_2D: Tensor
    softplus: bool
    order: OrderMap

    def arguments(self) -> tuple[object, ...]:
        """The operands as arrays, the order map as a plain tuple for numba."""
        *tensors, softplus, order = self
        return (*(array(t) for t in tensors), softplus, tuple(order))

    @property
    def blocks(self) -> int:
        """Channel blocks of the whole batch."""
        batch, _, channels = self.u_BLD.shape
        return batch * channel_blocks(channels, self.b_BGLN.shape[1])

    def scratch(self) -> tuple[Array, ...]:
        """Memory that one thread works in."""
        from segresmamba.ops.cpu.scan_kernels import PER_LANE, PER_STATE, TILES

        states = len(self.a_ND)
        return (
            array(torch.empty(TILES, TILE + 1, LANES)),
            array(torch.empty(PER_STATE, -(-states // LANES), TILE, LANES)),
            array(torch.empty(PER_LANE, states + 1, LANES)),
        )


def prepare(operands: ScanOperands, softplus: bool, order: OrderMap = _IN_A_ROW) -> Operands:
    """Views of float32 tensors, copies of others, neutral values for what is absent."""
    u_BDL, delta_BDL, A_DN, B_BGNL, C_BGNL, D_D, z_BDL, bias_D = operands
    zeros_D = torch.zeros(u_BDL.shape[1])
    return Operands(
        _float32(u_BDL).mT,
        _float32(delta_BDL).mT,
        torch.empty(0, 0, 0) if z_BDL is None else _float32(z_BDL).mT,
        # Kernels compute decays as powers of two: exp would take one more multiplication for each
        # state and token.
        (_float32(A_DN) / math.log(2.0)).mT.contiguous(),
        _float32(B_BGNL).mT,
        _float32(C_BGNL).mT,
        torch.stack([zeros_D if v is None else _float32(v) for v in (D_D, bias_D)]),
        softplus,
        order,
    )


def _float32(tensor: Tensor) -> Tensor:
    return tensor.detach().float()


def array(tensor: Tensor) -> Array:
    """The tensor as a NumPy array, without a copy."""
    return tensor.numpy()


def scan(ops: Operands, y_BLD: Tensor, *, add: bool, keep: bool) -> tuple[Tensor, Tensor]:
    """Write the output to y, or add it; returns the last state and the backward's checkpoints.

    Args:
        ops: Operands of the scan.
        y_BLD: Receives the output.
        add: Add the output to y instead of overwriting it.
        keep: Keep checkpoints; otherwise the second tensor has no tiles.

    Returns:
        Last state (B, N, D) and checkpoints (B, tiles, N, D).
    """
    from segresmamba.ops.cpu.scan_kernels import forward

    batch, length, channels = ops.u_BLD.shape
    states = len(ops.a_ND)
    last_BND = torch.empty(batch, states, channels)
    checkpoints = torch.empty(batch, tiles(length) if keep else 0, states, channels)
    arguments = (*ops.arguments(), array(y_BLD), add, array(last_BND), array(checkpoints))
    run(
        lambda _, start, stop: forward(*arguments, *ops.scratch(), start, stop),
        shares(ops.blocks),
    )
    return last_BND, checkpoints


class ScanGradients(NamedTuple):
    """Gradients of a scan, float32, in the order in which the kernel takes them."""

    u_BLD: Tensor
    delta_BLD: Tensor
    z_BLD: Tensor
    A_BND: Tensor
    B_BGLN: Tensor
    C_BGLN: Tensor
    skip_bias_B2D: Tensor


def scan_gradients(
    ops: Operands, checkpoints: Tensor, dy_BLD: Tensor, d_last_BND: Tensor
) -> ScanGradients:
    """Gradients of all operands; those of u, delta and z have the memory layout of the operand."""
    from segresmamba.ops.cpu.scan_kernels import backward

    batch, _, channels = ops.u_BLD.shape
    parts = shares(ops.blocks)
    # Threads share a group's B and C, so each thread adds up their gradients on its own.
    per_thread = (len(parts), *ops.b_BGLN.shape)
    sums = ScanGradients(
        torch.empty_like(ops.u_BLD),
        torch.empty_like(ops.delta_BLD),
        torch.empty_like(ops.z_BLD),
        torch.empty(batch, *ops.a_ND.shape),
        torch.zeros(per_thread),
        torch.zeros(per_thread),
        torch.empty(batch, 2, channels),
    )
    arguments = (*ops.arguments(), array(checkpoints), array(dy_BLD), array(d_last_BND))
    u, delta, z, A, B, C, skip_bias = (array(total) for total in sums)

    def work(thread: int, start: int, stop: int) -> None:
        gradients = (u, delta, z, A, B[thread], C[thread], skip_bias)
        backward(*arguments, *gradients, *ops.scratch(), start, stop)

    run(work, parts)
    return sums._replace(B_BGLN=sums.B_BGLN.sum(0), C_BGLN=sums.C_BGLN.sum(0))


def checkpoint_shape(operands: ScanOperands) -> tuple[int, ...]:
    """(B, tiles, N, D)."""
    batch, channels, length = operands.u.shape
    return batch, tiles(length), operands.A.shape[1], channels


def scan_forward(
    operands: ScanOperands, softplus: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `segresmamba.ops.kernels.Kernels`."""
    y_BDL = torch.empty(operands.u.shape)
    last_BND, checkpoints = scan(prepare(operands, softplus), y_BDL.mT, add=False, keep=keep)
    last_BDN = last_BND.mT.contiguous()
    return y_BDL.to(operands.u.dtype), last_BDN, checkpoints if keep else torch.empty(0)


def scan_backward(
    dy_BDL: Tensor,
    d_last_BDN: Tensor | None,
    operands: ScanOperands,
    checkpoints: Tensor,
    softplus: bool,
) -> list[Tensor]:
    """See `segresmamba.ops.kernels.Kernels`."""
    ops = prepare(operands, softplus)
    if d_last_BDN is None:
        d_last_BDN = torch.zeros(*operands.u.shape[:2], operands.A.shape[1])
    found = scan_gradients(ops, checkpoints, dy_BDL.float().mT, d_last_BDN.mT.contiguous())
    gradients = ScanOperands(
        found.u_BLD.mT,
        found.delta_BLD.mT,
        found.A_BND.sum(0).mT,
        found.B_BGLN.mT,
        found.C_BGLN.mT,
        found.skip_bias_B2D[:, 0].sum(0),
        found.z_BLD.mT,
        found.skip_bias_B2D[:, 1].sum(0),
    )
    return operands.gradients_from(gradients)
