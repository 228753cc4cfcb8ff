"""The Triton kernels as compiled for a GPU, at sizes that fill several of everything."""

from __future__ import annotations

import pytest
import torch

from segresmamba.ops import (
    available_backends,
    selective_scan,
    selective_scan_ref,
    tri_scan,
    tri_scan_ref,
    workspace,
)
from segresmamba.ops.kernels import TriOperands
from segresmamba.ops.triton import tri_backward, tri_forward
from tests.ops.operands import assert_same, gradients, scan_operands, tri_operands

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def full_tiles(small_tiles, monkeypatch):
    """The sizes that users get."""
    for name, size in {
        "chunking.CHUNK": 128, "chunking.LANES": 32, "chunking.CONV_TOKENS": 256,
        "triton.scan.ROWS": 4, "triton.tri.ROWS": 4, "triton.scan.PASS_BLOCK": 256,
    }.items():  # fmt: skip
        monkeypatch.setattr(f"segresmamba.ops.{name}", size)


def on_gpu(operands, dtype=None, halved=()):
    """The operands on the GPU, those named in another dtype."""
    moved = {name: t.detach().cuda() for name, t in operands.items()}
    moved |= {name: moved[name].to(dtype) for name in halved}
    return {name: t.requires_grad_() for name, t in moved.items()}


# The reference takes a third of a millisecond for each token. The longest sequence is cut into 656
# pieces, whose states take three blocks.
@pytest.mark.parametrize("length", [1, 127, 128, 129, 1000, 128 * 40 + 3])
@pytest.mark.parametrize("matrix", ["BNL", "BGNL", "DN"])
def test_scan_agrees_with_the_reference(length, matrix):
    o = on_gpu(scan_operands(2, 6, length, 16, matrix=matrix))
    y, last = selective_scan(**o, delta_softplus=True, return_last_state=True, backend="triton")
    expected, expected_last = selective_scan_ref(
        **{k: t.double() for k, t in o.items()}, delta_softplus=True, return_last_state=True
    )
    assert_same(
        {"y": y, "last": last}, {"y": expected.float(), "last": expected_last.float()}, 1e-5
    )
    assert_same(gradients(y, o), gradients(expected, o), 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scan_in_low_precision(dtype):
    o = on_gpu(scan_operands(1, 32, 2000, 16), dtype, ("u", "delta", "B", "C", "z"))
    y = selective_scan(**o, delta_softplus=True, backend="triton")
    expected = selective_scan_ref(**o, delta_softplus=True)
    eps = torch.finfo(dtype).eps
    assert_same({"y": y}, {"y": expected}, 2 * eps)
    assert_same(gradients(y, o), gradients(expected, o), 8 * eps)


@pytest.mark.parametrize(
    ("length", "num_slices"), [(16**3, 16), (20 * 16 * 12, 20), (7 * 9 * 5, 7)]
)
def test_tri_scan_agrees_with_the_reference(length, num_slices):
    o = on_gpu(tri_operands(2, 32, length, 16))
    y = tri_scan(**o, num_slices=num_slices, backend="triton")
    expected = tri_scan_ref(**{k: t.double() for k, t in o.items()}, num_slices=num_slices)
    assert_same({"y": y}, {"y": expected.float()}, 1e-4)
    assert_same(gradients(y, o), gradients(expected, o), 1e-3)


def test_tri_scan_under_autocast():
    o = on_gpu(tri_operands(1, 64, 16**3, 16), torch.bfloat16, ("x_BDL", "z_BDL"))
    with torch.autocast("cuda", torch.bfloat16):
        y = tri_scan(**o, num_slices=16)
    eps = torch.finfo(torch.bfloat16).eps
    assert y.dtype == torch.bfloat16
    assert_same({"y": y}, {"y": tri_scan_ref(**o, num_slices=16)}, 8 * eps)


def test_operator_contract():
    o = on_gpu(tri_operands(1, 8, 64, 4))
    torch.library.opcheck(torch.ops.segresmamba.tri_scan.default, (*o.values(), 8, "triton"))


def test_compiles_with_inductor():
    o = on_gpu(tri_operands(1, 32, 512, 16))
    compiled = torch.compile(tri_scan, fullgraph=True)
    torch.testing.assert_close(compiled(**o, num_slices=8), tri_scan(**o, num_slices=8))


def test_operators_take_the_memory_that_the_planner_counts():
    o = {name: t.detach() for name, t in on_gpu(tri_operands(1, 96, 32**3, 16)).items()}
    operands = TriOperands(**o | {name: o[name].bfloat16() for name in ("x_BDL", "z_BDL")})
    dy_BDL = torch.ones_like(operands.x_BDL)
    for run, expected in (
        (lambda: tri_forward(operands, 32), workspace.tri_forward(*operands)),
        (
            lambda: tri_backward(dy_BDL, operands, 32),
            workspace.tri_backward(dy_BDL, list(operands)),
        ),
    ):
        run()  # cuBLAS takes a workspace once, and keeps it
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        assert torch.cuda.max_memory_allocated() - before == pytest.approx(expected, rel=0.1)


@pytest.mark.skipif(available_backends()["mamba_ssm"] != "ok", reason="needs mamba-ssm")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_agrees_with_stock_mamba(dtype):
    o = on_gpu(scan_operands(2, 32, 3000, 16), dtype, ("u", "delta", "B", "C", "z"))
    ours, theirs = (
        selective_scan(**o, delta_softplus=True, backend=name) for name in ("triton", "mamba_ssm")
    )
    tolerance = 8 * torch.finfo(dtype).eps
    assert_same({"y": ours}, {"y": theirs}, max(tolerance, 1e-5))
    assert_same(gradients(ours, o), gradients(theirs, o), max(4 * tolerance, 1e-4))


@pytest.mark.skipif(available_backends()["mamba_ssm"] != "ok", reason="needs mamba-ssm")
def test_tri_scan_agrees_with_stock_mamba():
    o = on_gpu(tri_operands(1, 32, 16**3, 16))
    ours, theirs = (tri_scan(**o, num_slices=16, backend=name) for name in ("triton", "mamba_ssm"))
    assert_same({"y": ours}, {"y": theirs}, 1e-4)
    assert_same(gradients(ours, o), gradients(theirs, o), 1e-3)
