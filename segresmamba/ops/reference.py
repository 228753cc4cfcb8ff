"""Readable PyTorch scans on any device: the oracle that every kernel is tested against.

They share no arithmetic with the kernels, so that a mistake cannot be in both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segresmamba.ops.orders import ORDERS, invert, scan_order_indices


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective state-space scan (Gu and Dao, arXiv 2312.00752), one token after the other.

        h_l = exp(delta_l * A) * h_(l-1) + delta_l * B_l * u_l        y_l = C_l . h_l + D * u_l

    Arguments and results are those of `segresmamba.ops.selective_scan`. Low-precision inputs are
    computed in float32; float64 stays float64.
    """
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    u_BDL, delta_BDL, A_DN = u.to(dtype), delta.to(dtype), A.to(dtype)
    if delta_bias is not None:
        delta_BDL = delta_BDL + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        delta_BDL = F.softplus(delta_BDL)
    B_BDNL, C_BDNL = (_per_channel(m.to(dtype), u_BDL) for m in (B, C))

    decay_LBDN = torch.exp(torch.einsum("bdl,dn->lbdn", delta_BDL, A_DN))
    input_LBDN = torch.einsum("bdl,bdnl->lbdn", delta_BDL * u_BDL, B_BDNL)
    output_LBDN = C_BDNL.permute(3, 0, 1, 2)
    state_BDN = u_BDL.new_zeros(*u_BDL.shape[:2], A_DN.shape[1])
    steps = []
    # Unbound once: indexing in the loop would make the backward pass quadratic in L.
    for decay_BDN, input_BDN, output_BDN in zip(
        decay_LBDN.unbind(), input_LBDN.unbind(), output_LBDN.unbind(), strict=True
    ):
        state_BDN = decay_BDN * state_BDN + input_BDN
        steps.append((state_BDN * output_BDN).sum(2))
    y_BDL = torch.stack(steps, dim=2)
    if D is not None:
        y_BDL = y_BDL + D.to(dtype)[:, None] * u_BDL
    if z is not None:
        y_BDL = y_BDL * F.silu(z.to(dtype))
    y_BDL = y_BDL.to(u.dtype)
    return (y_BDL, state_BDN) if return_last_state else y_BDL


def tri_scan_ref(
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
    """Three scans of one volume on explicitly permuted copies; arguments as in `tri_scan`."""
    dtype = torch.float64 if x_BDL.dtype == torch.float64 else torch.float32
    length, rank, states = x_BDL.shape[2], dt_proj_KDR.shape[2], A_KDN.shape[2]
    y_BDL = torch.zeros_like(x_BDL, dtype=dtype)
    for k, order in enumerate(ORDERS):
        indices = scan_order_indices(order, length, num_slices).to(x_BDL.device)
        u_BDL = causal_conv_silu(
            x_BDL[..., indices].to(dtype), conv_weight_KDW[k].to(dtype), conv_bias_KD[k].to(dtype)
        )
        projected_BPL = x_proj_KPD[k].to(dtype) @ u_BDL
        step_BRL, B_BNL, C_BNL = torch.split(projected_BPL, [rank, states, states], dim=1)
        delta_BDL = dt_proj_KDR[k].to(dtype) @ step_BRL
        sequence_BDL = selective_scan_ref(
            u_BDL, delta_BDL, A_KDN[k], B_BNL, C_BNL, D_KD[k], None, dt_bias_KD[k], True
        )
        assert isinstance(sequence_BDL, Tensor)
        y_BDL = y_BDL + sequence_BDL[..., invert(indices)]
    return (y_BDL * F.silu(z_BDL.to(dtype))).to(x_BDL.dtype)


def causal_conv_silu(x_BDL: Tensor, weight_DW: Tensor, bias_D: Tensor) -> Tensor:
    """SiLU of a depthwise convolution that sees the present and the W - 1 tokens before it."""
    width = weight_DW.shape[1]
    padded = F.pad(x_BDL, (width - 1, 0))
    return F.silu(F.conv1d(padded, weight_DW[:, None], bias_D, groups=weight_DW.shape[0]))


def _per_channel(matrix: Tensor, u_BDL: Tensor) -> Tensor:
    """B or C in any of its three forms, expanded to (B, D, N, L)."""
    batch, channels, length = u_BDL.shape
    if matrix.ndim == 2:
        return matrix[None, :, :, None].expand(batch, -1, -1, length)
    if matrix.ndim == 3:
        return matrix[:, None].expand(-1, channels, -1, -1)
    return matrix.repeat_interleave(channels // matrix.shape[1], dim=1)
