"""The mamba_ssm backend: stock mamba-ssm and causal-conv1d kernels, no fork.

Stock kernels know one order only, so `tri_scan` permutes and stores copies here. They ignore the
gradient of the last state.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from segresmamba.ops.kernels import ScanOperands, TriOperands
from segresmamba.ops.orders import ORDERS, Order, invert, scan_order_indices


def selective_scan(
    operands: ScanOperands, delta_softplus: bool, return_last_state: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """See `segresmamba.ops.selective_scan`; operands are cast to the dtypes the kernel wants."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    u, delta, A, B, C, D, z, delta_bias = operands
    # Constant (D, N) matrices count as weights, which are float32, and so are A, D and the bias.
    B, C = (m.float() if m.ndim == 2 else m.to(u.dtype) for m in (B, C))
    result: Tensor | tuple[Tensor, Tensor] = selective_scan_fn(
        u,
        delta.to(u.dtype),
        A.float(),
        B,
        C,
        None if D is None else D.float(),
        None if z is None else z.to(u.dtype),
        None if delta_bias is None else delta_bias.float(),
        delta_softplus,
        return_last_state,
    )
    return result


def tri_scan(operands: TriOperands, num_slices: int) -> Tensor:
    """See `segresmamba.ops.tri_scan`; causal-conv1d takes convolution widths from 2 to 4."""
    from causal_conv1d import causal_conv1d_fn

    x_BDL, z_BDL = operands[:2]
    dtype = x_BDL.dtype
    y_BDL = torch.zeros_like(x_BDL)
    for order, direction in zip(ORDERS, operands.directions(num_slices), strict=True):
        _, weight_DW, bias_D, x_proj_PD, dt_proj_DR, dt_bias_D, A_DN, D_D = direction
        rank, states = dt_proj_DR.shape[1], A_DN.shape[1]
        indices, inverse = _permutation(order, x_BDL.shape[2], num_slices, x_BDL.device)
        u_BDL = causal_conv1d_fn(
            x_BDL[..., indices], weight_DW.to(dtype), bias_D.to(dtype), activation="silu"
        )
        projected_BPL = x_proj_PD.to(dtype) @ u_BDL
        step_BRL, B_BNL, C_BNL = torch.split(projected_BPL, [rank, states, states], dim=1)
        delta_BDL = dt_proj_DR.to(dtype) @ step_BRL
        scan = ScanOperands(
            u_BDL, delta_BDL, A_DN, B_BNL, C_BNL, D_D, z_BDL[..., indices], dt_bias_D
        )
        sequence_BDL = selective_scan(scan, delta_softplus=True, return_last_state=False)
        assert isinstance(sequence_BDL, Tensor)
        y_BDL = y_BDL + sequence_BDL[..., inverse]
    return y_BDL


@lru_cache(maxsize=32)  # three for each shape of feature map, 16 bytes per token
def _permutation(
    order: Order, length: int, num_slices: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """An order and its inverse on a device, made at their first use."""
    # A tensor that is made in inference mode could not serve a later training step.
    with torch.inference_mode(False):
        indices = scan_order_indices(order, length, num_slices).to(device)
        return indices, invert(indices)
