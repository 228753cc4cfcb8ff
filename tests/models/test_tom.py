from __future__ import annotations

import torch
import torch.nn.functional as F

from segresmamba.models import TriOrientedMamba
from segresmamba.ops import selective_scan_ref


def by_hand(layer: TriOrientedMamba, x_BCDHW: torch.Tensor, slices: int) -> torch.Tensor:
    """The layer as the paper words it: three scans over explicitly permuted tokens."""
    tokens_BLC = x_BCDHW.flatten(2).transpose(1, 2)
    normed_BLC = F.layer_norm(tokens_BLC, tokens_BLC.shape[-1:], layer.norm_weight, layer.norm_bias)
    x_BEL, z_BEL = (normed_BLC @ layer.in_proj_weight.T).transpose(1, 2).chunk(2, dim=1)
    L = x_BEL.shape[-1]
    position = torch.arange(L)
    orders = [position, position.flip(0), position.view(slices, L // slices).T.flatten()]
    rank, d_state = layer.dt_proj_weight_KER.shape[-1], layer.A_log_KEN.shape[-1]
    total_BEL = torch.zeros_like(x_BEL)
    for k, order in enumerate(orders):
        weight_E1W = layer.conv_weight_KEW[k][:, None]
        width = weight_E1W.shape[-1]
        u_BEL = F.silu(
            F.conv1d(
                F.pad(x_BEL[..., order], (width - 1, 0)),
                weight_E1W,
                layer.conv_bias_KE[k],
                groups=len(weight_E1W),
            )
        )
        low_BRL, B_BNL, C_BNL = (layer.x_proj_weight_KPE[k] @ u_BEL).split(
            [rank, d_state, d_state], dim=1
        )
        y_BEL = selective_scan_ref(
            u_BEL,
            layer.dt_proj_weight_KER[k] @ low_BRL,
            -layer.A_log_KEN[k].exp(),
            B_BNL,
            C_BNL,
            layer.D_KE[k],
            z=z_BEL[..., order],
            delta_bias=layer.dt_bias_KE[k],
            delta_softplus=True,
        )
        total_BEL[..., order] += y_BEL
    y_BCL = layer.out_proj_weight @ total_BEL
    return x_BCDHW + y_BCL.view_as(x_BCDHW)


def test_layer_equals_three_scans_over_permuted_tokens() -> None:
    torch.manual_seed(0)
    layer = TriOrientedMamba(8, d_state=4)
    x_BCDHW = torch.randn(2, 8, 3, 4, 5)
    torch.testing.assert_close(layer(x_BCDHW), by_hand(layer, x_BCDHW, slices=3))


def test_slices_default_to_the_depth_and_can_be_set() -> None:
    torch.manual_seed(0)
    layer = TriOrientedMamba(8, d_state=4, num_slices=4)
    x_BCDHW = torch.randn(1, 8, 3, 4, 5)
    torch.testing.assert_close(layer(x_BCDHW), by_hand(layer, x_BCDHW, slices=4))


def test_step_sizes_start_between_a_thousandth_and_a_tenth() -> None:
    steps = F.softplus(TriOrientedMamba(16).dt_bias_KE.detach())
    assert float(steps.min()) >= 0.999e-3
    assert float(steps.max()) <= 1.001e-1


def test_without_residual_the_input_is_not_added() -> None:
    torch.manual_seed(0)
    with_residual = TriOrientedMamba(8, d_state=4)
    torch.manual_seed(0)
    without = TriOrientedMamba(8, d_state=4, residual=False)
    x_BCDHW = torch.randn(1, 8, 2, 4, 4)
    torch.testing.assert_close(with_residual(x_BCDHW), x_BCDHW + without(x_BCDHW))
