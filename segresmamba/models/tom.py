"""Tri-oriented Mamba (ToM): one state-space layer that reads a volume in three orders.

Shapes: B batch, C channels, L = D * H * W tokens, E = expand * C inner channels, N state size,
R rank of the step-size projection, W width of the causal convolution, K = 3 scan orders.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segresmamba.ops import tri_scan

_ORDERS = 3
_DT_MIN, _DT_MAX, _DT_FLOOR = 1e-3, 1e-1, 1e-4


class TriOrientedMamba(nn.Module):
    """y = out_proj(scan_forward(z) + scan_reverse(z) + scan_inter_slice(z)), z = in_proj(norm(x)).

    One input and one output projection are shared; each order has its own convolution, projections
    and state-space parameters, stacked along a leading axis of 3, or all have the same, stacked
    along an axis of 1 (SegMamba, arXiv 2401.13560, section 2.2, keeps them separate; initial values
    as in Mamba, arXiv 2312.00752, section 3.6).

    All weights are parameters of this very module, not of submodules: sharded data parallelism
    gathers what the running module owns.

    Args:
        channels: C of the volume.
        d_state: N.
        d_conv: W.
        expand: E as a multiple of C.
        num_slices: Slices of the inter-slice order; None takes the depth of the volume.
        residual: Add the input to the output.
        zero_output: Begin with an output projection of zeros.
        shared_directions: One set of parameters for the three orders.
        pad_to_even: Scan a volume whose odd sides are padded with a plane of zeros, as the released
            code prepares it; the output is cropped again.
        backend: Scan implementation, see `segresmamba.ops.selective_scan`.
    """

    def __init__(
        self,
        channels: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        num_slices: int | None = None,
        residual: bool = True,
        zero_output: bool = False,
        shared_directions: bool = False,
        pad_to_even: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        inner, rank = expand * channels, math.ceil(channels / 16)
        sets = 1 if shared_directions else _ORDERS
        self.num_slices = num_slices
        self.residual = residual
        self.pad_to_even = pad_to_even
        self.backend = backend
        self.norm_weight = nn.Parameter(torch.ones(channels))
        self.norm_bias = nn.Parameter(torch.zeros(channels))
        self.in_proj_weight = _uniform(2 * inner, channels, bound=channels**-0.5)
        out_bound = 0.0 if zero_output else inner**-0.5
        self.out_proj_weight = _uniform(channels, inner, bound=out_bound)
        self.conv_weight_KEW = _uniform(sets, inner, d_conv, bound=d_conv**-0.5)
        self.conv_bias_KE = _uniform(sets, inner, bound=d_conv**-0.5)
        self.x_proj_weight_KPE = _uniform(sets, rank + 2 * d_state, inner, bound=inner**-0.5)
        self.dt_proj_weight_KER = _uniform(sets, inner, rank, bound=rank**-0.5)
        self.dt_bias_KE = nn.Parameter(_inverse_softplus(_log_uniform_steps(sets, inner)))
        decay_N = torch.arange(1, d_state + 1, dtype=torch.float32)
        self.A_log_KEN = nn.Parameter(decay_N.log().repeat(sets, inner, 1))
        self.D_KE = nn.Parameter(torch.ones(sets, inner))

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Mix all voxels of the volume; the shape stays."""
        depth, height, width = x_BCDHW.shape[2:]
        odd = (0, width % 2, 0, height % 2, 0, depth % 2)
        if self.pad_to_even and any(odd):
            y_BCDHW = self._mix(F.pad(x_BCDHW, odd))[:, :, :depth, :height, :width]
        else:
            y_BCDHW = self._mix(x_BCDHW)
        return x_BCDHW + y_BCDHW if self.residual else y_BCDHW

    def _mix(self, x_BCDHW: Tensor) -> Tensor:
        tokens_BLC = x_BCDHW.flatten(2).transpose(1, 2)
        normed_BLC = F.layer_norm(
            tokens_BLC, tokens_BLC.shape[-1:], self.norm_weight, self.norm_bias
        )
        # Weight times tokens, not tokens times weight: the scan wants each channel contiguous.
        x_BEL, z_BEL = _times(self.in_proj_weight, normed_BLC.transpose(1, 2)).chunk(2, dim=1)
        directions = (
            self.conv_weight_KEW,
            self.conv_bias_KE,
            self.x_proj_weight_KPE,
            self.dt_proj_weight_KER,
            self.dt_bias_KE,
            -self.A_log_KEN.float().exp(),
            self.D_KE,
        )
        y_BEL = tri_scan(
            x_BEL,
            z_BEL,
            *(p.expand(_ORDERS, *p.shape[1:]) for p in directions),
            num_slices=self.num_slices or x_BCDHW.shape[2],
            backend=self.backend,
        )
        return _times(self.out_proj_weight, y_BEL).view_as(x_BCDHW)


def _times(weight: Tensor, x_BCL: Tensor) -> Tensor:
    """Multiply each batch item by a weight.

    torch.matmul would multiply all batch items at once, transposed, then copy the product, and its
    gradient would reach the scan with channels in a row.
    """
    return torch.bmm(weight.expand(len(x_BCL), -1, -1), x_BCL)


def _uniform(*shape: int, bound: float) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def _log_uniform_steps(*shape: int) -> Tensor:
    low, high = math.log(_DT_MIN), math.log(_DT_MAX)
    return torch.empty(shape).uniform_(low, high).exp().clamp(min=_DT_FLOOR)


def _inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))
