"""The oracle itself, against numbers worked out element by element and numerical derivatives."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from segresmamba.ops import selective_scan_ref, tri_scan_ref
from tests.ops.operands import scan_operands, tri_operands


def test_one_channel_by_hand():
    u, delta = torch.tensor([[[2.0, -1.0]]]), torch.tensor([[[0.5, 1.0]]])
    A, B, C = torch.tensor([[-1.0]]), torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[5.0, 6.0]]])
    y, last = selective_scan_ref(u, delta, A, B, C, D=torch.tensor([10.0]), return_last_state=True)
    h0 = 0.5 * 3.0 * 2.0
    h1 = math.exp(-1.0) * h0 + 1.0 * 4.0 * -1.0
    torch.testing.assert_close(y, torch.tensor([[[5 * h0 + 20.0, 6 * h1 - 10.0]]]))
    torch.testing.assert_close(last, torch.tensor([[[h1]]]))


def test_bias_softplus_and_gate():
    o = {k: v.detach() for k, v in scan_operands().items()}
    gated = selective_scan_ref(**o, delta_softplus=True)
    delta = F.softplus(o["delta"] + o["delta_bias"][:, None])
    plain = selective_scan_ref(o["u"], delta, o["A"], o["B"], o["C"], o["D"])
    torch.testing.assert_close(gated, plain * F.silu(o["z"]))


def test_forms_of_b_and_c_agree():
    o = scan_operands()
    y = selective_scan_ref(**o)
    grouped = o | {"B": o["B"][:, None].expand(-1, 3, -1, -1), "C": o["C"][:, None]}
    torch.testing.assert_close(selective_scan_ref(**grouped), y)
    constant = scan_operands(matrix="DN")
    B, C = (constant[m][None, :, :, None].expand(2, -1, -1, 21) for m in "BC")
    torch.testing.assert_close(
        selective_scan_ref(**constant), selective_scan_ref(**constant | {"B": B, "C": C})
    )


def test_low_precision_is_computed_in_float32():
    o = {k: v.detach().bfloat16() for k, v in scan_operands().items()}
    exact = selective_scan_ref(**{k: v.float() for k, v in o.items()})
    assert torch.equal(selective_scan_ref(**o), exact.bfloat16())


@pytest.mark.parametrize("matrix", ["BNL", "BGNL", "DN"])
@pytest.mark.parametrize("absent", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
@pytest.mark.parametrize("options", [(False, False), (True, True)])
def test_gradients_in_double_precision(matrix, absent, options):
    o = scan_operands(1, 2, 4, 2, matrix=matrix, dtype=torch.float64)
    o = o | dict.fromkeys(absent)
    assert torch.autograd.gradcheck(
        lambda *operands: selective_scan_ref(*operands, *options), tuple(o.values())
    )


def test_tri_gradients_in_double_precision():
    o = tri_operands(1, 2, 4, 1, rank=1, width=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *operands: tri_scan_ref(*operands, num_slices=2), tuple(o.values()), fast_mode=True
    )
