"""tri_scan of the cpu backend.

For one order after the other it computes the convolution, the projections as matrix products over
all tokens, and a scan that adds to the output. Everything is token-major (batch, length, channels)
and stays in storage order. The backward pass recomputes all of it, so only the operands are kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segresmamba.ops.cpu.layout import LANES, TILE, channel_blocks, tiles
from segresmamba.ops.cpu.scan import Array, Operands, array, prepare, scan, scan_gradients
from segresmamba.ops.cpu.threads import run, shares
from segresmamba.ops.kernels import Direction, ScanOperands, TriOperands


def tri_forward(operands: TriOperands, num_slices: int) -> Tensor:
    """See `segresmamba.ops.kernels.Kernels`."""
    x_BLD = _tokens(operands.x_BDL)
    y_BLD = torch.zeros_like(x_BLD)
    for direction in _directions(operands, num_slices):
        u_BLD = _convolve(x_BLD, direction)
        scan(_project(u_BLD, direction)[0], y_BLD, add=True, keep=False)
    y_BLD *= F.silu(_tokens(operands.z_BDL))
    return torch.empty_like(operands.x_BDL).copy_(y_BLD.mT)


def tri_backward(d_out_BDL: Tensor, operands: TriOperands, num_slices: int) -> list[Tensor]:
    """See `segresmamba.ops.kernels.Kernels`."""
    x_BDL, z_BDL, *parameters = operands
    x_BLD, z_BLD, d_out_BLD = _tokens(x_BDL), _tokens(z_BDL), _tokens(d_out_BDL)
    sigmoid_BLD = z_BLD.sigmoid()
    dy_BLD = d_out_BLD * z_BLD * sigmoid_BLD
    dx_BLD, y_BLD = torch.zeros_like(x_BLD), torch.zeros_like(x_BLD)
    gradients = [
        _direction_gradients(direction, x_BLD, dy_BLD, y_BLD, dx_BLD)
        for direction in _directions(operands, num_slices)
    ]
    dz_BLD = d_out_BLD * y_BLD * sigmoid_BLD * (1 + z_BLD * (1 - sigmoid_BLD))
    return [
        torch.empty_like(x_BDL).copy_(dx_BLD.mT),
        torch.empty_like(z_BDL).copy_(dz_BLD.mT),
        *(
            torch.empty_like(parameter).copy_(torch.stack(parts))
            for parameter, parts in zip(parameters, zip(*gradients, strict=True), strict=True)
        ),
    ]


def _direction_gradients(
    direction: Direction, x_BLD: Tensor, dy_BLD: Tensor, y_BLD: Tensor, dx_BLD: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of one order's parameters; adds its output to y and its share to dx."""
    u_BLD = _convolve(x_BLD, direction)
    ops, projected_BLP = _project(u_BLD, direction)
    last_BND, checkpoints = scan(ops, y_BLD, add=True, keep=True)
    grads = scan_gradients(ops, checkpoints, dy_BLD, torch.zeros_like(last_BND))
    rank = direction.dt_proj_DR.shape[1]
    d_projected_BLP = torch.cat(
        [grads.delta_BLD @ direction.dt_proj_DR, grads.B_BGLN[:, 0], grads.C_BGLN[:, 0]], dim=2
    )
    # Few rows times many: contiguous rows make this product up to seven times faster.
    step_BRL = projected_BLP[..., :rank].mT.contiguous()
    d_dt_proj_DR = (step_BRL @ grads.delta_BLD).sum(0).mT
    d_x_proj_PD = torch.einsum("blp,bld->pd", d_projected_BLP, u_BLD)
    du_BLD = grads.u_BLD.flatten(0, 1).addmm_(d_projected_BLP.flatten(0, 1), direction.x_proj_PD)
    d_weight_bias_WD = _convolve_gradients(x_BLD, direction, du_BLD.view_as(x_BLD), dx_BLD)
    return (
        d_weight_bias_WD[:-1].mT,
        d_weight_bias_WD[-1],
        d_x_proj_PD,
        d_dt_proj_DR,
        grads.skip_bias_B2D[:, 1].sum(0),
        grads.A_BND.sum(0).mT,
        grads.skip_bias_B2D[:, 0].sum(0),
    )


def _project(u_BLD: Tensor, direction: Direction) -> tuple[Operands, Tensor]:
    """The operands of one order's scan, and the projection that they come from."""
    rank, states = direction.dt_proj_DR.shape[1], direction.A_DN.shape[1]
    projected_BLP = u_BLD @ direction.x_proj_PD.T
    step_BLR, B_BLN, C_BLN = torch.split(projected_BLP, [rank, states, states], dim=2)
    delta_BLD = step_BLR @ direction.dt_proj_DR.T
    operands = ScanOperands(
        u_BLD.mT,
        delta_BLD.mT,
        direction.A_DN,
        B_BLN.mT[:, None],
        C_BLN.mT[:, None],
        direction.D_D,
        None,
        direction.dt_bias_D,
    )
    return prepare(operands, softplus=True, order=direction.order), projected_BLP


def _directions(operands: TriOperands, num_slices: int) -> list[Direction]:
    """The orders with float32 parameters."""
    x_BDL, z_BDL, *parameters = operands
    return TriOperands(x_BDL, z_BDL, *(p.detach().float() for p in parameters)).directions(
        num_slices
    )


def _tokens(x_BDL: Tensor) -> Tensor:
    """Tokens as (B, L, D), float32 and contiguous; x itself if it has that layout already."""
    return x_BDL.detach().float().mT.contiguous()


def _convolve(x_BLD: Tensor, direction: Direction) -> Tensor:
    """SiLU of the causal convolution in one order, stored in storage order."""
    from segresmamba.ops.cpu.conv_kernels import forward

    u_BLD = torch.empty_like(x_BLD)
    weights, order = _weight_bias(direction), tuple(direction.order)

    def work(_: int, start: int, stop: int) -> None:
        forward(array(x_BLD), weights, order, array(u_BLD), _scratch(direction), start, stop)

    run(work, shares(_tiles(x_BLD)))
    return u_BLD


def _convolve_gradients(
    x_BLD: Tensor, direction: Direction, du_BLD: Tensor, dx_BLD: Tensor
) -> Tensor:
    """Gradient of the convolution's weights and bias (W + 1, D); adds that of x to dx."""
    from segresmamba.ops.cpu.conv_kernels import backward

    parts = shares(_tiles(x_BLD))
    weights, order = _weight_bias(direction), tuple(direction.order)
    sums = torch.zeros(len(parts), *weights.shape)
    tensors = array(du_BLD), array(dx_BLD)

    def work(thread: int, start: int, stop: int) -> None:
        own = array(sums[thread])
        backward(array(x_BLD), weights, order, *tensors, own, _scratch(direction), start, stop)

    run(work, parts)
    return sums.sum(0)


def _weight_bias(direction: Direction) -> Array:
    """The convolution as its kernel reads it: (W + 1, D), the bias as the last row."""
    return array(torch.cat([direction.conv_weight_DW.mT, direction.conv_bias_D[None]]))


def _tiles(x_BLD: Tensor) -> int:
    batch, length, channels = x_BLD.shape
    return batch * channel_blocks(channels) * tiles(length)


def _scratch(direction: Direction) -> Array:
    from segresmamba.ops.cpu.conv_kernels import TILES

    return array(torch.empty(TILES, TILE + 2 * (direction.conv_weight_DW.shape[1] + 1), LANES))
