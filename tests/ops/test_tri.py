"""tri_scan of every kernel backend: three scans of permuted sequences, without the copies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from segresmamba.ops import dispatch, selective_scan, tri_scan, tri_scan_ref
from segresmamba.ops.kernels import TriOperands
from segresmamba.ops.orders import ORDERS, invert, scan_order_indices
from tests.ops.operands import assert_same, gradients, tri_operands


def three_scans(o, num_slices):
    """The definition: permute, convolve, project, scan, put back; one order after the other."""
    x, z, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D = TriOperands(**o)
    rank, states = dt_proj.shape[2], A.shape[2]
    y = torch.zeros_like(x)
    for k, order in enumerate(ORDERS):
        indices = scan_order_indices(order, x.shape[2], num_slices)
        padded = F.pad(x[..., indices], (conv_weight.shape[2] - 1, 0))
        u = F.silu(F.conv1d(padded, conv_weight[k][:, None], conv_bias[k], groups=x.shape[1]))
        step, B, C = torch.split(x_proj[k] @ u, [rank, states, states], dim=1)
        y_k = selective_scan(
            u, dt_proj[k] @ step, A[k], B, C, D[k], z[..., indices], dt_bias[k], True
        )
        y = y + y_k[..., invert(indices)]
    return y


def test_equals_three_scans_of_permuted_copies(backend, volume, num_slices):
    depth, height, width = volume
    length = depth * height * width
    o = tri_operands(**backend.tri_size | {"batch": 1, "length": length})
    y = tri_scan(**o, num_slices=num_slices, backend=backend.name)
    expected = three_scans(o, num_slices)
    assert_same({"y": y}, {"y": expected}, 1e-5)
    assert_same(gradients(y, o), gradients(expected, o), 1e-5)


def test_agrees_with_the_reference(backend):
    o = tri_operands(**backend.tri_size)
    y = tri_scan(**o, num_slices=3, backend=backend.name)
    expected = tri_scan_ref(**o, num_slices=3)
    assert_same({"y": y}, {"y": expected}, 1e-5)
    assert_same(gradients(y, o), gradients(expected, o), 2e-5)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_convolutions_of_other_widths(backend, width):
    o = tri_operands(**backend.tri_size | {"length": 6}, width=width)
    y, expected = tri_scan(**o, num_slices=2, backend=backend.name), tri_scan_ref(**o, num_slices=2)
    assert_same({"y": y}, {"y": expected}, 1e-5)
    assert_same(gradients(y, o), gradients(expected, o), 2e-5)


def test_one_token_and_empty_batch(backend):
    o = tri_operands(**backend.tri_size | {"length": 1})
    y, expected = tri_scan(**o, num_slices=1, backend=backend.name), tri_scan_ref(**o, num_slices=1)
    assert_same({"y": y}, {"y": expected}, 1e-5)
    o = tri_operands(**backend.tri_size | {"batch": 0})
    y = tri_scan(**o, num_slices=3, backend=backend.name)
    assert y.shape == o["x_BDL"].shape
    assert not any(gradient.any() for gradient in gradients(y, o).values())


@pytest.mark.parametrize("layout", ["channels_last", "halves_of_one_tensor"])
def test_memory_layouts(backend, layout):
    operands = tri_operands(**backend.tri_size | {"batch": 2})
    o = {name: t.detach() for name, t in operands.items()}
    expected = tri_scan_ref(**o, num_slices=3)
    if layout == "channels_last":
        x, z = (o[name].mT.contiguous().mT for name in ("x_BDL", "z_BDL"))
    else:
        x, z = torch.cat([o["x_BDL"], o["z_BDL"]], dim=1).chunk(2, dim=1)
    o |= {"x_BDL": x, "z_BDL": z}
    y = tri_scan(**o, num_slices=3, backend=backend.name)
    assert_same({"y": y}, {"y": expected}, 1e-5)
    assert y.stride() == torch.empty_like(x).stride()


def test_only_the_operands_are_kept_for_backward(backend):
    o = tri_operands(**backend.tri_size)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        tri_scan(**o, num_slices=3, backend=backend.name)
    assert [t.data_ptr() for t in kept] == [t.data_ptr() for t in o.values()]


def test_autocast_half_tokens_with_float32_parameters(backend):
    o = {name: t.detach() for name, t in tri_operands(**backend.tri_size).items()}
    o |= {name: o[name].bfloat16() for name in ("x_BDL", "z_BDL")}
    o = {name: t.requires_grad_() for name, t in o.items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = tri_scan(**o, num_slices=3, backend=backend.name)
    assert y.dtype == torch.bfloat16
    expected = tri_scan_ref(**o, num_slices=3)
    assert_same({"y": y}, {"y": expected}, backend.bfloat16_tolerance)
    found = gradients(y, o)
    assert {name: g.dtype for name, g in found.items()} == {n: t.dtype for n, t in o.items()}
    assert_same(found, gradients(expected, o), 4 * backend.bfloat16_tolerance)


def test_operator_contract(backend):
    o = tri_operands(**backend.tri_size | {"batch": 1, "channels": 2, "length": 6})
    torch.library.opcheck(torch.ops.segresmamba.tri_scan.default, (*o.values(), 3, backend.name))


def test_backward_operator_contract(backend):
    o = {name: t.detach() for name, t in tri_operands(**backend.tri_size).items()}
    torch.library.opcheck(
        torch.ops.segresmamba.tri_scan_backward.default,
        (torch.ones_like(o["x_BDL"]), list(o.values()), 3, backend.name),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_nan_stays_where_it_belongs(backend):
    operands = tri_operands(**backend.tri_size | {"batch": 2})
    o = {name: t.detach() for name, t in operands.items()}
    for name in ("x_BDL", "z_BDL"):
        poisoned = o[name].clone()
        poisoned[0, 1, 3] = torch.nan
        y = tri_scan(**o | {name: poisoned}, num_slices=3, backend=backend.name)
        expected = torch.zeros_like(y, dtype=torch.bool)
        # One order or the other comes to every token after the one of x, and projections mix its
        # channels; a gate is its own token's alone.
        expected[(0,) if name == "x_BDL" else (0, 1, 3)] = True
        assert torch.equal(y.isnan(), expected)


def test_compiles_into_one_graph():
    o = tri_operands()
    compiled = torch.compile(tri_scan, backend="aot_eager", fullgraph=True)
    y, expected = compiled(**o, num_slices=4), tri_scan_ref(**o, num_slices=4)
    assert_same(gradients(y, o), gradients(expected, o), 2e-5)


def test_operations_are_counted():
    o = tri_operands()
    with FlopCounterMode(display=False) as counter:
        tri_scan(**o, num_slices=4).sum().backward()
    tokens, states, rank, width = o["x_BDL"].numel(), 4, 2, 4
    products = 2 * tokens * (width + rank + 2 * states + rank)
    assert counter.get_total_flops() == 3 * (4 * products + (7 + 7 + 19) * tokens * states)


@pytest.mark.parametrize("fake", [True, False])
def test_shapes_are_worked_out_without_any_kernel(fake, monkeypatch):
    monkeypatch.setattr(dispatch, "_missing", lambda name: dispatch._Missing(name, "pip"))
    monkeypatch.setattr("segresmamba.ops.tri.tri_scan_ref", None)
    o = tri_operands(1, 4, 6, 2)
    if fake:
        mode = FakeTensorMode()
        o = {name: mode.from_tensor(t) for name, t in o.items()}
    else:
        o = {name: t.detach().to("meta") for name, t in o.items()}
    assert tri_scan(**o, num_slices=2).shape == o["x_BDL"].shape
