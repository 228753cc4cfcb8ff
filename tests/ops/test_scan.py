"""selective_scan of every kernel backend against the oracle."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from segresmamba.ops import selective_scan, selective_scan_ref
from tests.ops.operands import assert_same, gradients, scan_operands

OPTIONS = ("D", "z", "delta_bias")


@pytest.mark.parametrize("matrix", ["BNL", "BGNL", "DN"])
@pytest.mark.parametrize("softplus", [False, True])
def test_output_and_gradients_agree_with_the_reference(backend, matrix, softplus):
    o = scan_operands(**backend.size, matrix=matrix)
    y = selective_scan(**o, delta_softplus=softplus, backend=backend.name)
    expected = selective_scan_ref(**o, delta_softplus=softplus)
    assert_same({"y": y}, {"y": expected}, 1e-5)
    assert_same(gradients(y, o), gradients(expected, o), 2e-5)


@pytest.mark.parametrize("present", [(), ("D",), ("z",), ("delta_bias",)])
def test_operands_may_be_absent(backend, present):
    o = scan_operands(**backend.size)
    o = {name: t for name, t in o.items() if name not in OPTIONS or name in present}
    y, expected = selective_scan(**o, backend=backend.name), selective_scan_ref(**o)
    assert_same({"y": y}, {"y": expected}, 1e-5)
    assert_same(gradients(y, o), gradients(expected, o), 2e-5)


def test_differently_grouped_matrices(backend):
    o = scan_operands(**backend.size | {"channels": 4})
    o["B"] = scan_operands(**backend.size, matrix="BGNL")["B"]
    o["C"] = scan_operands(**backend.size | {"channels": 4}, matrix="DN")["C"]
    y, expected = selective_scan(**o, backend=backend.name), selective_scan_ref(**o)
    assert_same({"y": y}, {"y": expected}, 1e-5)
    assert_same(gradients(y, o), gradients(expected, o), 2e-5)


def test_last_state_and_its_gradient(backend):
    o = scan_operands(**backend.size)
    y, last = selective_scan(**o, delta_softplus=True, return_last_state=True, backend=backend.name)
    expected_y, expected = selective_scan_ref(**o, delta_softplus=True, return_last_state=True)
    assert_same({"y": y, "last": last}, {"y": expected_y, "last": expected}, 1e-5)
    from_state = {name: o[name] for name in ("u", "delta", "A", "B", "delta_bias")}
    assert_same(gradients(last, from_state), gradients(expected, from_state), 2e-5)


@pytest.mark.parametrize("length", [1, 2])
def test_shortest_sequences(backend, length):
    o = scan_operands(**backend.size | {"length": length})
    y, expected = selective_scan(**o, backend=backend.name), selective_scan_ref(**o)
    assert_same({"y": y}, {"y": expected}, 1e-5)
    assert_same(gradients(y, o), gradients(expected, o), 2e-5)


def test_empty_batch(backend):
    o = scan_operands(**backend.size | {"batch": 0})
    y, last = selective_scan(**o, return_last_state=True, backend=backend.name)
    assert y.shape == o["u"].shape
    assert last.shape == (0, *o["A"].shape)
    found = gradients(y, o)
    assert {name: g.shape for name, g in found.items()} == {n: t.shape for n, t in o.items()}
    assert not found["A"].any()


def test_non_contiguous_operands(backend):
    o = {name: t.detach() for name, t in scan_operands(**backend.size).items()}
    strided = {name: torch.stack([t, torch.zeros_like(t)], dim=-1)[..., 0] for name, t in o.items()}
    strided["u"] = o["u"].mT.contiguous().mT
    strided["A"] = o["A"].mT.contiguous().mT
    assert not any(t.is_contiguous() for t in strided.values())
    strided = {name: t.requires_grad_() for name, t in strided.items()}
    y, expected = selective_scan(**strided, backend=backend.name), selective_scan_ref(**strided)
    assert_same({"y": y}, {"y": expected}, 1e-5)
    assert_same(gradients(y, strided), gradients(expected, strided), 2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_operands_keep_a_float32_state(backend, dtype):
    o = {name: t.detach() for name, t in scan_operands(**backend.size).items()}
    for name in ("u", "delta", "B", "C", "z"):
        o[name] = o[name].to(dtype)
    o = {name: t.requires_grad_() for name, t in o.items()}
    y, last = selective_scan(**o, return_last_state=True, backend=backend.name)
    assert (y.dtype, last.dtype) == (dtype, torch.float32)
    assert_same({"y": y}, {"y": selective_scan_ref(**o)}, torch.finfo(dtype).eps)
    found = gradients(y, o)
    assert {name: g.dtype for name, g in found.items()} == {n: t.dtype for n, t in o.items()}
    expected = gradients(selective_scan_ref(**o), o)
    assert_same(found, expected, 4 * torch.finfo(dtype).eps)


def test_nan_stays_where_it_belongs(backend):
    o = {name: t.detach() for name, t in scan_operands(**backend.size).items()}
    u, B = o["u"].clone(), o["B"].clone()
    u[0, 1, 3] = torch.nan
    expected = torch.zeros_like(u, dtype=torch.bool)
    expected[0, 1, 3:] = True
    y = selective_scan(**o | {"u": u}, delta_softplus=True, backend=backend.name)
    assert torch.equal(y.isnan(), expected)
    B[1, 0, 5] = torch.nan
    expected = torch.zeros_like(u, dtype=torch.bool)
    expected[1, :, 5:] = True
    y = selective_scan(**o | {"B": B}, delta_softplus=True, backend=backend.name)
    assert torch.equal(y.isnan(), expected)
    delta = o["delta"].clone()
    delta[0, 0, 4] = torch.nan
    expected = torch.zeros_like(u, dtype=torch.bool)
    expected[0, 0, 4:] = True
    y = selective_scan(**o | {"delta": delta}, delta_softplus=True, backend=backend.name)
    assert torch.equal(y.isnan(), expected)


def test_step_sizes_of_any_magnitude(backend):
    o = {name: t.detach() for name, t in scan_operands(**backend.size).items()}
    length = o["delta"].shape[2]
    o["delta"] = torch.linspace(-90.0, 90.0, length).expand_as(o["delta"])
    y = selective_scan(**o, delta_softplus=True, backend=backend.name)
    assert_same({"y": y}, {"y": selective_scan_ref(**o, delta_softplus=True)}, 1e-5)


def test_without_gradients_nothing_is_kept(backend):
    o = {name: t.detach() for name, t in scan_operands(**backend.size).items()}
    y = selective_scan(**o, backend=backend.name)
    assert y.grad_fn is None


def test_operator_contract(backend):
    o = scan_operands(**backend.size | {"batch": 1, "channels": 2}, matrix="BGNL")
    arguments = (*o.values(), True, True, backend.name)
    torch.library.opcheck(torch.ops.segresmamba.selective_scan.default, arguments)


def test_backward_operator_contract(backend):
    o = {k: t.detach() for k, t in scan_operands(**backend.size, matrix="BGNL").items()}
    y, last, kept = torch.ops.segresmamba.selective_scan(*o.values(), True, True, backend.name)
    torch.library.opcheck(
        torch.ops.segresmamba.selective_scan_backward.default,
        (y, last, *o.values(), kept, True, backend.name),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_shapes_without_data():
    o = {name: t.detach().to("meta") for name, t in scan_operands(length=10**6).items()}
    y, last = selective_scan(**o, return_last_state=True)
    assert (y.shape, last.shape) == ((2, 6, 10**6), (2, 6, 4))


def test_compiles_into_one_graph():
    o = scan_operands()
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    y = compiled(**o, delta_softplus=True)
    expected = selective_scan_ref(**o, delta_softplus=True)
    assert_same(gradients(y, o), gradients(expected, o), 2e-5)


def test_exports():
    class Scan(torch.nn.Module):
        def forward(self, u, delta, A, B, C):
            return selective_scan(u, delta, A, B, C)

    o = {name: t.detach() for name, t in scan_operands().items() if name not in OPTIONS}
    program = torch.export.export(Scan(), tuple(o.values()))
    torch.testing.assert_close(program.module()(*o.values()), selective_scan(**o))


def test_operations_are_counted():
    o = scan_operands()
    with FlopCounterMode(display=False) as counter:
        selective_scan(**o).sum().backward()
    states = o["u"].numel() * o["A"].shape[1]
    assert counter.get_total_flops() == (7 + 19) * states


def test_autocast_leaves_the_scan_alone():
    o = scan_operands()
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan(**o)
    assert torch.equal(y, selective_scan(**o))
