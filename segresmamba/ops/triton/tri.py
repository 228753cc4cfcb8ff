"""tri_scan of the triton backend.

For each order the convolution reads x through the order map and writes its result in the order of
the scan. The projections (matrix products, for which the order does not matter) and the scan then
read memory in sequence, and the scan adds its output to y through the map. No permuted copy of x,
z or y is made. The backward pass recomputes everything from the operands.
Long sequences have at most 16 bytes per element of a bfloat16 x in use (`ops.workspace`), so
buffers are freed or written over as soon as their content has been read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segresmamba.ops import chunking
from segresmamba.ops.chunking import cdiv
from segresmamba.ops.kernels import Direction, ScanOperands, TriOperands
from segresmamba.ops.orders import ORDERS
from segresmamba.ops.triton.conv import convolve, convolve_gradients
from segresmamba.ops.triton.launch import launch
from segresmamba.ops.triton.scan import (
    Scan,
    chunk_starts,
    dense,
    gradients,
    kernel_slices,
    no_state,
    outputs,
    prepare,
    start_states,
)

# Channels per program of a convolution.
ROWS = 4


def directions(operands: TriOperands, num_slices: int) -> list[Direction]:
    """The orders, their projections in the dtype of x, as autocast would cast them."""
    x_BDL, z_BDL, weight, bias, x_proj, dt_proj, *others = operands
    projections = (x_proj.to(x_BDL.dtype), dt_proj.to(x_BDL.dtype))
    parameters = (p.contiguous() for p in (weight, bias, *projections, *others))
    return TriOperands(x_BDL, z_BDL, *parameters).directions(num_slices)


def tri_forward(operands: TriOperands, num_slices: int) -> Tensor:
    """See `segresmamba.ops.kernels.Kernels`."""
    x_BDL, z_BDL = dense(operands.x_BDL), operands.z_BDL
    batch, channels, length = x_BDL.shape
    # Channel-last: a walk writes the channels of a token together, wherever the order puts it.
    total_BDL = x_BDL.new_empty((batch, length, channels), dtype=torch.float32).mT
    first, second, third = directions(operands, num_slices)
    zeros_BDN = no_state(x_BDL, operands.A_KDN.shape[2])
    _add_outputs(x_BDL, first, zeros_BDN, None, total_BDL, None)
    _add_outputs(x_BDL, second, zeros_BDN, None, total_BDL, total_BDL)
    y_BDL = torch.empty_like(operands.x_BDL)
    _add_outputs(x_BDL, third, zeros_BDN, z_BDL, y_BDL, total_BDL)
    return y_BDL


def _add_outputs(
    x_BDL: Tensor, direction: Direction, zeros_BDN: Tensor, gate_BDL: Tensor | None,
    y_BDL: Tensor, earlier_BDL: Tensor | None,
) -> None:  # fmt: skip
    """Write the outputs of one order to y, see `outputs`."""
    scan, _ = _project(_convolve(x_BDL, direction), direction)
    B_rows = scan.rows(scan.B_BGNL)
    start, _ = start_states(scan, B_rows, zeros_BDN)
    outputs(scan, start, B_rows, gate_BDL, y_BDL, earlier_BDL)


def tri_backward(dy_BDL: Tensor, operands: TriOperands, num_slices: int) -> list[Tensor]:
    """See `segresmamba.ops.kernels.Kernels`."""
    x_BDL, z_BDL, dy_BDL = dense(operands.x_BDL), dense(operands.z_BDL), dense(dy_BDL)
    dx_BDL = torch.zeros(x_BDL.shape, device=x_BDL.device)
    sum_BDL = torch.empty_like(dx_BDL)  # of the orders' outputs; in the end the gradient of z
    zeros_BDN = no_state(x_BDL, operands.A_KDN.shape[2])
    found = [
        _gradients(direction, (x_BDL, z_BDL, dy_BDL), zeros_BDN, dx_BDL, sum_BDL, k)
        for k, direction in enumerate(directions(operands, num_slices))
    ]
    del x_BDL, z_BDL, dy_BDL
    d_x_BDL = torch.empty_like(operands.x_BDL).copy_(dx_BDL)
    del dx_BDL
    d_z_BDL = torch.empty_like(operands.z_BDL).copy_(sum_BDL)
    parameters = zip(operands[2:], zip(*found, strict=True), strict=True)
    stacked = (torch.stack(parts, out=torch.empty_like(p)) for p, parts in parameters)
    return [d_x_BDL, d_z_BDL, *stacked]


def _gradients(
    direction: Direction, tensors: tuple[Tensor, Tensor, Tensor], zeros_BDN: Tensor,
    dx_BDL: Tensor, sum_BDL: Tensor, k: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of the k-th order's parameters in their order.

    Adds this order's share to dx and its output to the sum; the last order makes the sum the
    gradient of z.
    """
    x_BDL, z_BDL, dy_BDL = tensors
    rank, states = direction.dt_proj_DR.shape[1], direction.A_DN.shape[1]
    scan, projected_BPL = _project(_convolve(x_BDL, direction), direction)
    starts = chunk_starts(scan, start_states(scan, scan.rows(scan.B_BGNL), zeros_BDN)[0])
    d_u_BDL, d_delta_BDL, d_A_DN, d_B_BGNL, d_C_BGNL, d_D_D, _, d_dt_bias_D = gradients(
        scan, starts, zeros_BDN, dy_BDL, z_BDL, sum_BDL, add=k > 0,
        last=k == len(ORDERS) - 1, d_u_BDL=scan.u_BDL, d_delta_BDL=scan.delta_BDL,
    )  # fmt: skip
    # u and delta exist no more, and the gradient of the projection takes its place as well.
    del scan, starts
    step_BRL, B_BNL, C_BNL = torch.split(projected_BPL, [rank, states, states], dim=1)
    d_dt_proj_DR = (d_delta_BDL @ step_BRL.mT).sum(0)
    step_BRL.copy_(_times(direction.dt_proj_DR.mT, d_delta_BDL))
    B_BNL.copy_(d_B_BGNL[:, 0])
    C_BNL.copy_(d_C_BGNL[:, 0])
    del d_delta_BDL, d_B_BGNL, d_C_BGNL
    d_x_proj_PD = (projected_BPL @ _convolve(x_BDL, direction).mT).sum(0)
    x_proj_BDP = direction.x_proj_PD.mT.expand(len(x_BDL), -1, -1)
    d_u_BDL.baddbmm_(x_proj_BDP, projected_BPL)
    d_weight_DW, d_bias_D = _convolve_gradients(x_BDL, direction, d_u_BDL, dx_BDL)
    found = (d_weight_DW, d_bias_D, d_x_proj_PD, d_dt_proj_DR, d_dt_bias_D, d_A_DN, d_D_D)
    assert all(gradient is not None for gradient in found)
    return found  # type: ignore[return-value]


def _project(u_BDL: Tensor, direction: Direction) -> tuple[Scan, Tensor]:
    """The scan of one order, and the projection of its input."""
    rank, states = direction.dt_proj_DR.shape[1], direction.A_DN.shape[1]
    projected_BPL = _times(direction.x_proj_PD, u_BDL)
    step_BRL, B_BNL, C_BNL = torch.split(projected_BPL, [rank, states, states], dim=1)
    operands = ScanOperands(
        u_BDL,
        _times(direction.dt_proj_DR, step_BRL),
        direction.A_DN,
        B_BNL[:, None],
        C_BNL[:, None],
        direction.D_D,
        None,
        direction.dt_bias_D,
    )
    return prepare(operands, softplus=True, order=direction.order), projected_BPL


def _times(matrix: Tensor, x_BDL: Tensor) -> Tensor:
    """Multiply each batch item by a matrix.

    torch.matmul would multiply all batch items at once, transposed, and copy the product.
    """
    return torch.bmm(matrix.expand(len(x_BDL), -1, -1), x_BDL)


def _convolve(x_BDL: Tensor, direction: Direction) -> Tensor:
    """SiLU of the causal convolution, in the order of the scan."""
    _, channels, length = x_BDL.shape
    u_BDL = x_BDL.new_empty(x_BDL.shape)
    launch(
        convolve, _grid(x_BDL), x_BDL,
        x_BDL, direction.conv_weight_DW, direction.conv_bias_D, u_BDL, length, channels,
        kernel_slices(direction.order), x_BDL.stride(0), **_constants(direction),
    )  # fmt: skip
    return u_BDL


def _convolve_gradients(
    x_BDL: Tensor, direction: Direction, d_u_BDL: Tensor, dx_BDL: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the convolution's weights (D, W) and bias (D,); adds that of x to dx."""
    batch, channels, length = x_BDL.shape
    grid, width = _grid(x_BDL), direction.conv_weight_DW.shape[1]
    d_weight = dx_BDL.new_empty(batch, grid[0], channels, width)
    d_bias = dx_BDL.new_empty(batch, grid[0], channels)
    launch(
        convolve_gradients, grid, x_BDL,
        d_u_BDL, x_BDL, direction.conv_weight_DW, direction.conv_bias_D, dx_BDL, d_weight,
        d_bias, length, channels, kernel_slices(direction.order), x_BDL.stride(0),
        **_constants(direction),
    )  # fmt: skip
    return d_weight.sum((0, 1)), d_bias.sum((0, 1))


def _grid(x_BDL: Tensor) -> tuple[int, int, int]:
    """Programs of a convolution: chunks, blocks of rows, batch items."""
    batch, channels, length = x_BDL.shape
    return cdiv(length, chunking.CONV_TOKENS), cdiv(channels, ROWS), batch


def _constants(direction: Direction) -> dict[str, int]:
    """Compile-time sizes of a convolution."""
    return {
        "IN_A_ROW": kernel_slices(direction.order) == 1,
        "ROWS": ROWS,
        "CHUNK": chunking.CONV_TOKENS,
        "WIDTH": direction.conv_weight_DW.shape[1],
    }
