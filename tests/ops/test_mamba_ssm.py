"""The glue around stock mamba-ssm, whose kernels need a GPU; here the oracle stands in for them."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from segresmamba.ops import mamba_ssm, selective_scan_ref, tri_scan_ref
from segresmamba.ops.kernels import ScanOperands, TriOperands
from segresmamba.ops.orders import ORDERS, scan_order_indices
from segresmamba.ops.reference import causal_conv_silu
from tests.ops.operands import assert_same, gradients, scan_operands, tri_operands


def stock_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state):
    """Takes what `selective_scan_cuda.fwd` takes, and only that."""
    for name, t in {"delta": delta, "z": z}.items():
        assert t is None or t.dtype == u.dtype, name
    for name, t in {"A": A, "D": D, "delta_bias": delta_bias}.items():
        assert t is None or t.dtype == torch.float32, name
    for t in (B, C):
        assert t.dtype == (torch.float32 if t.ndim == 2 else u.dtype)
    return selective_scan_ref(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state
    )


def stock_conv(x, weight, bias, activation):
    assert activation == "silu"
    assert x.dtype == weight.dtype == bias.dtype
    return causal_conv_silu(x, weight, bias)


@pytest.fixture(autouse=True)
def stock_packages(monkeypatch):
    """Modules with the names that stock packages have."""
    for name, member, function in (
        ("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn", stock_scan),
        ("causal_conv1d", "causal_conv1d_fn", stock_conv),
    ):
        module = types.ModuleType(name)
        setattr(module, member, function)
        parts = name.split(".")
        for depth in range(1, len(parts)):
            parent = ".".join(parts[:depth])
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("matrix", ["BNL", "BGNL", "DN"])
def test_mixed_dtypes_are_cast_to_what_the_kernel_takes(matrix):
    o = {name: t.detach() for name, t in scan_operands(matrix=matrix).items()}
    o["u"] = o["u"].bfloat16()
    y, last = mamba_ssm.selective_scan(ScanOperands(**o), True, True)
    rounded = o | {
        name: o[name].bfloat16().float()
        for name in ("delta", "z", "B", "C")
        if not (matrix == "DN" and name in "BC")
    }
    expected, expected_last = selective_scan_ref(*rounded.values(), True, True)
    assert torch.equal(y, expected)
    assert torch.equal(last, expected_last)


def test_tri_scan_permutes_for_the_kernel_that_knows_one_order():
    o = tri_operands()
    y = mamba_ssm.tri_scan(TriOperands(**o), num_slices=4)
    expected = tri_scan_ref(**o, num_slices=4)
    assert_same({"y": y}, {"y": expected}, 1e-5)
    assert_same(gradients(y, o), gradients(expected, o), 1e-5)


def test_index_maps_are_made_once_for_each_shape_and_serve_training_too(monkeypatch):
    made = []

    def count(order, length, num_slices):
        made.append((order, length))
        return scan_order_indices(order, length, num_slices)

    monkeypatch.setattr(mamba_ssm, "scan_order_indices", count)
    mamba_ssm._permutation.cache_clear()
    o = tri_operands()
    with torch.inference_mode():
        mamba_ssm.tri_scan(TriOperands(**o), num_slices=4)
    for _ in range(2):
        gradients(mamba_ssm.tri_scan(TriOperands(**o), num_slices=4), o)
    mamba_ssm.tri_scan(TriOperands(**tri_operands(length=36)), num_slices=4)
    assert made == [(order, length) for length in (24, 36) for order in ORDERS]
