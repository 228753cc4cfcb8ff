"""`tri_scan`: the forward, reverse and inter-slice scans of one volume as one operator.

As one operator it keeps only its operands for the backward pass: 192 MiB for 64^3 tokens of 96
channels, where three scans keep 1629 MiB (docs/performance.md, "Scan"). Kernels read and write
through index maps, without permuted copies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from segresmamba.ops import flops
from segresmamba.ops.checks import check_tri
from segresmamba.ops.dispatch import resolve_backend
from segresmamba.ops.kernels import TriOperands, load
from segresmamba.ops.operators import custom_op
from segresmamba.ops.reference import tri_scan_ref
from segresmamba.ops.scan import has_float64


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
    backend: str = "auto",
) -> Tensor:
    """Sum of three selective scans of the same tokens in three orders, gated by SiLU(z).

    This is SegMamba's tri-oriented Mamba (`bimamba_type="v3"`) without its in and out projections.
    For each of the K = 3 orders of `segresmamba.ops.orders`:

        u = SiLU(causal depthwise convolution of x)
        [step, B, C] = x_proj u;   delta = softplus(dt_proj step + dt_bias)
        y_k = selective_scan(u, delta, A, B, C, D), put back into storage order

    Args:
        x_BDL: Tokens of the volume in raster order, L = D * H * W. The cpu backend needs no copy
            if their memory is channel-last (a transposed (B, L, D) tensor).
        z_BDL: Gate.
        conv_weight_KDW: Weights of the convolutions, the present token last.
        conv_bias_KD: Biases of the convolutions.
        x_proj_KPD: Projections to P = R + 2 N features.
        dt_proj_KDR: Projections of the step sizes.
        dt_bias_KD: Biases of the step sizes.
        A_KDN: State matrices, real (usually -exp(A_log)).
        D_KD: Skip weights.
        num_slices: Slices of the inter-slice order; divides L.
        backend: "auto" or one of `segresmamba.ops.BACKENDS`.

    Returns:
        y (B, D, L) in storage order, in the dtype and memory layout of x.

    Raises:
        ValueError: If operands do not fit together or num_slices does not divide L.
        NotImplementedError: Complex A, more than 2**31 - 2**16 tokens, float64 on a kernel backend.
        BackendMissingError: If the named backend is not installed.
    """
    operands = TriOperands(
        x_BDL, z_BDL, conv_weight_KDW, conv_bias_KD, x_proj_KPD, dt_proj_KDR, dt_bias_KD, A_KDN,
        D_KD,
    )  # fmt: skip
    check_tri(operands, num_slices)
    name = _resolve(backend, operands)
    if name == "reference":
        return tri_scan_ref(*operands, num_slices=num_slices)
    if name == "mamba_ssm":
        from segresmamba.ops import mamba_ssm

        return mamba_ssm.tri_scan(operands, num_slices)
    y_BDL: Tensor = _tri(*operands, num_slices, name)
    return y_BDL


def _resolve(backend: str, operands: TriOperands) -> str:
    """The backend of a call, see `resolve_backend`."""
    x_BDL, is_float64 = operands.x_BDL, has_float64(operands)
    no_data = x_BDL.is_meta or (x_BDL.device.type == "cpu" and isinstance(x_BDL, FakeTensor))
    if backend == "auto" and no_data and not is_float64:
        # An operator only works out shapes here, for which its kernels need not be installed. The
        # reference would walk along all tokens to no purpose.
        return "cpu"
    return resolve_backend(backend, x_BDL.device, float64=is_float64)


@custom_op(
    "segresmamba::tri_scan",
    schema="(Tensor x, Tensor z, Tensor conv_weight, Tensor conv_bias, Tensor x_proj, "
    "Tensor dt_proj, Tensor dt_bias, Tensor A, Tensor D, SymInt num_slices, str backend) -> Tensor",
)
def _tri(*arguments: Any) -> Tensor:
    *operands, num_slices, backend = arguments
    # Each backend chooses the types of its matrix products; autocast must not change them.
    with torch.autocast(operands[0].device.type, enabled=False):
        return load(backend).tri_forward(TriOperands(*operands), num_slices)


@_tri.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


@custom_op("segresmamba::tri_scan_backward")
def _tri_backward(
    dy: Tensor, operands: list[Tensor], num_slices: int, backend: str
) -> list[Tensor]:
    with torch.autocast(dy.device.type, enabled=False):
        return load(backend).tri_backward(dy, TriOperands(*operands), num_slices)


@_tri_backward.register_fake
def _(dy: Tensor, operands: list[Tensor], num_slices: int, backend: str) -> list[Tensor]:
    return [torch.empty_like(t) for t in operands]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *operands, ctx.num_slices, ctx.backend = inputs
    ctx.save_for_backward(*operands)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    found = _tri_backward(dy, list(ctx.saved_tensors), ctx.num_slices, ctx.backend)
    return (*found, None, None)


_tri.register_autograd(_gradients, setup_context=_setup_context)
register_flop_formula(torch.ops.segresmamba.tri_scan)(flops.tri)
register_flop_formula(torch.ops.segresmamba.tri_scan_backward)(flops.tri_backward)
