"""tri_scan of the triton backend.

For each order the convolution reads x through the order map and writes its result in the order of
the scan. The projections (matrix products, for which the order does not matter) and the scan then
read memory in sequence, and the scan adds its output to y through the map. No permuted copy of x,
z or y is made. The backward pass recomputes everything from the operands.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segresmamba.ops.kernels import Direction, ScanOperands, TriOperands
from segresmamba.ops.orders import ORDERS
from segresmamba.ops.triton.conv import convolve, convolve_gradients
from segresmamba.ops.triton.scan import (
    Scan,
    cdiv,
    chunk_starts,
    dense,
    gradients,
    on_device,
    outputs,
    prepare,
    start_states,
    tile_size,
)

# Most tokens and channels per program of a convolution.
TOKENS, ROWS = 256, 4


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
    y_BDL = torch.empty_like(operands.x_BDL)
    for k, direction in enumerate(directions(operands, num_slices)):
        scan, _ = _project(_convolve(x_BDL, direction), direction)
        last = k == len(ORDERS) - 1
        start, _ = start_states(scan)
        outputs(
            scan,
            start,
            z_BDL if last else None,
            y_BDL if last else total_BDL,
            total_BDL if k else None,
        )
    return y_BDL


def tri_backward(dy_BDL: Tensor, operands: TriOperands, num_slices: int) -> list[Tensor]:
    """See `segresmamba.ops.kernels.Kernels`."""
    x_BDL, z_BDL, dy_BDL = dense(operands.x_BDL), dense(operands.z_BDL), dense(dy_BDL)
    dx_BDL = torch.zeros(x_BDL.shape, device=x_BDL.device)
    total_BDL = torch.empty_like(dx_BDL)
    dz_BDL = z_BDL.new_empty(z_BDL.shape)
    found = []
    for k, direction in enumerate(directions(operands, num_slices)):
        last = k == len(ORDERS) - 1
        u_BDL = _convolve(x_BDL, direction)
        scan, projected_BPL = _project(u_BDL, direction)
        start, last_state = start_states(scan)
        grads = gradients(
            scan, chunk_starts(scan, start), torch.zeros_like(last_state), dy_BDL, z_BDL,
            total_BDL, k > 0, dz_BDL if last else None,
        )  # fmt: skip
        found.append(_parameter_gradients(direction, grads, x_BDL, u_BDL, projected_BPL, dx_BDL))
    parameters = zip(operands[2:], zip(*found, strict=True), strict=True)
    return [
        torch.empty_like(operands.x_BDL).copy_(dx_BDL),
        torch.empty_like(operands.z_BDL).copy_(dz_BDL),
        *(torch.empty_like(p).copy_(torch.stack(parts)) for p, parts in parameters),
    ]


def _project(u_BDL: Tensor, direction: Direction) -> tuple[Scan, Tensor]:
    """The scan of one order, and the projection of its input."""
    rank, states = direction.dt_proj_DR.shape[1], direction.A_DN.shape[1]
    projected_BPL = direction.x_proj_PD @ u_BDL
    step_BRL, B_BNL, C_BNL = torch.split(projected_BPL, [rank, states, states], dim=1)
    operands = ScanOperands(
        u_BDL,
        direction.dt_proj_DR @ step_BRL,
        direction.A_DN,
        B_BNL[:, None],
        C_BNL[:, None],
        direction.D_D,
        None,
        direction.dt_bias_D,
    )
    return prepare(operands, softplus=True, order=direction.order), projected_BPL


def _parameter_gradients(
    direction: Direction, grads: ScanOperands, x_BDL: Tensor, u_BDL: Tensor,
    projected_BPL: Tensor, dx_BDL: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of one order's parameters in their order; adds this order's share to dx."""
    rank, dtype = direction.dt_proj_DR.shape[1], x_BDL.dtype
    d_projected_BPL = torch.cat(
        [
            direction.dt_proj_DR.mT @ grads.delta,
            grads.B[:, 0].to(dtype),
            grads.C[:, 0].to(dtype),
        ],
        dim=1,
    )
    d_dt_proj_DR = (grads.delta @ projected_BPL[:, :rank].mT).sum(0)
    d_x_proj_PD = (d_projected_BPL @ u_BDL.mT).sum(0)
    d_u_BDL = grads.u + direction.x_proj_PD.mT @ d_projected_BPL
    d_weight_DW, d_bias_D = _convolve_gradients(x_BDL, direction, d_u_BDL, dx_BDL)
    found = (d_weight_DW, d_bias_D, d_x_proj_PD, d_dt_proj_DR, grads.delta_bias, grads.A, grads.D)
    assert all(gradient is not None for gradient in found)
    return found  # type: ignore[return-value]


def _convolve(x_BDL: Tensor, direction: Direction) -> Tensor:
    """SiLU of the causal convolution, in the order of the scan."""
    _, channels, length = x_BDL.shape
    u_BDL = x_BDL.new_empty(x_BDL.shape)
    with on_device(x_BDL):
        convolve[_grid(x_BDL)](
            x_BDL, direction.conv_weight_DW, direction.conv_bias_D, u_BDL, length, channels,
            direction.order.slices, x_BDL.stride(0), REVERSE=direction.order.reverse, ROWS=ROWS,
            CHUNK=tile_size(length, TOKENS), WIDTH=direction.conv_weight_DW.shape[1],
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
    with on_device(x_BDL):
        convolve_gradients[grid](
            d_u_BDL, x_BDL, direction.conv_weight_DW, direction.conv_bias_D, dx_BDL, d_weight,
            d_bias, length, channels, direction.order.slices, x_BDL.stride(0),
            REVERSE=direction.order.reverse, ROWS=ROWS, CHUNK=tile_size(length, TOKENS),
            WIDTH=width,
        )  # fmt: skip
    return d_weight.sum((0, 1)), d_bias.sum((0, 1))


def _grid(x_BDL: Tensor) -> tuple[int, int, int]:
    """Programs: chunks, blocks of rows, batch items."""
    batch, channels, length = x_BDL.shape
    return cdiv(length, tile_size(length, TOKENS)), cdiv(channels, ROWS), batch
