"""The mamba_ssm backend: stock mamba-ssm and causal-conv1d kernels, no fork.

Stock kernels know one order only, so `tri_scan` permutes and stores copies here. They ignore the
gradient of the last state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segresmamba.ops.orders import ORDERS, invert, scan_order_indices


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_last_state: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """See `segresmamba.ops.selective_scan`; operands are cast to the dtypes the kernel wants."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

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


def tri_scan(
    x_BDL: Tensor,
    z_BDL: Tensor,
    conv_weight_KDW: Tensor,
    conv_bias_KD: Tensor,
    x_proj_KPD: Tensor,
    dt_proj_KDR: Tensor,
    dt_bias_KD: Tensor,
    A_KDN: Tensor,
    D_KD: Tensor,
    *,
    num_slices: int,
) -> Tensor:
    """See `segresmamba.ops.tri_scan`; conv widths are those of causal-conv1d, 2 to 4."""
    from causal_conv1d import causal_conv1d_fn

    dtype, rank, states = x_BDL.dtype, dt_proj_KDR.shape[2], A_KDN.shape[2]
    y_BDL = torch.zeros_like(x_BDL)
    for k, order in enumerate(ORDERS):
        indices = scan_order_indices(order, x_BDL.shape[2], num_slices).to(x_BDL.device)
        u_BDL = causal_conv1d_fn(
            x_BDL[..., indices],
            conv_weight_KDW[k].to(dtype),
            conv_bias_KD[k].to(dtype),
            activation="silu",
        )
        projected_BPL = x_proj_KPD[k].to(dtype) @ u_BDL
        step_BRL, B_BNL, C_BNL = torch.split(projected_BPL, [rank, states, states], dim=1)
        sequence_BDL = selective_scan(
            u_BDL,
            dt_proj_KDR[k].to(dtype) @ step_BRL,
            A_KDN[k],
            B_BNL,
            C_BNL,
            D_KD[k],
            z_BDL[..., indices],
            dt_bias_KD[k],
            delta_softplus=True,
            return_last_state=False,
        )
        assert isinstance(sequence_BDL, Tensor)
        y_BDL = y_BDL + sequence_BDL[..., invert(indices)]
    return y_BDL
