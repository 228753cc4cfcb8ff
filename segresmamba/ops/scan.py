"""`selective_scan`: one public function, one torch.library operator for all kernel backends.

An operator of torch.library is opaque to torch: torch.compile and torch.export keep it whole, and
shapes are known without running a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from segresmamba.ops import flops
from segresmamba.ops.checks import check_scan
from segresmamba.ops.dispatch import resolve_backend
from segresmamba.ops.kernels import ScanOperands, load
from segresmamba.ops.operators import custom_op
from segresmamba.ops.reference import selective_scan_ref


def selective_scan(
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
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective state-space scan with the semantics of mamba-ssm's `selective_scan_fn`.

        h_l = exp(delta_l * A) * h_(l-1) + delta_l * B_l * u_l        y_l = C_l . h_l + D * u_l

    Gradients flow to every tensor, through the last state too. The state is float32 in every
    kernel; operands may be float32, bfloat16 or float16, mixed as autocast leaves them.

    Args:
        u: Input (B, D, L).
        delta: Step sizes (B, D, L), before bias and softplus.
        A: State matrix (D, N), real.
        B: Input matrix (B, N, L), (B, G, N, L) shared by D / G channels each, or constant (D, N).
        C: Output matrix, in any of the same forms.
        D: Skip weight (D,).
        z: Gate (B, D, L); the output is multiplied by SiLU(z).
        delta_bias: Added to delta (D,).
        delta_softplus: Apply softplus to delta, after the bias.
        return_last_state: Also return the state after the last token.
        backend: "auto" or one of `segresmamba.ops.BACKENDS`.

    Returns:
        y (B, D, L) in the dtype of u; with return_last_state also the state (B, D, N), float32
        (float64 for float64 operands).

    Raises:
        ValueError: If operands do not fit together; the message names the one at fault.
        NotImplementedError: Complex A, more than 2**31 - 2**16 tokens, float64 on a kernel backend.
        BackendMissingError: If the named backend is not installed.
    """
    operands = ScanOperands(u, delta, A, B, C, D, z, delta_bias)
    check_scan(operands)
    name = resolve_backend(backend, u.device, float64=has_float64(operands))
    if name == "reference":
        return selective_scan_ref(*operands, delta_softplus, return_last_state)
    if name == "mamba_ssm":
        from segresmamba.ops import mamba_ssm

        return mamba_ssm.selective_scan(operands, delta_softplus, return_last_state)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    B, C = _as_groups(B, C, u)
    y, last_state, _ = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, keep, name)
    return (y, last_state) if return_last_state else y


def has_float64(operands: Sequence[Tensor | None]) -> bool:
    """Whether any operand asks for double precision, which only the reference has."""
    return any(t is not None and t.dtype == torch.float64 for t in operands)


def _as_groups(B: Tensor, C: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """B and C as (B, G, N, L) with the same G; views, except when both are grouped differently."""
    batch, channels, length = u.shape

    def grouped(matrix: Tensor) -> Tensor:
        if matrix.ndim == 2:
            return matrix[None, :, :, None].expand(batch, -1, -1, length)
        return matrix[:, None] if matrix.ndim == 3 else matrix

    def regrouped(matrix: Tensor, groups: int) -> Tensor:
        if matrix.shape[1] == 1:
            return matrix.expand(-1, groups, -1, -1)
        return matrix.repeat_interleave(groups // matrix.shape[1], dim=1)

    B, C = grouped(B), grouped(C)
    if B.shape[1] == C.shape[1]:
        return B, C
    # Two different numbers above one need not divide each other: every channel becomes a group.
    groups = channels if 1 not in (B.shape[1], C.shape[1]) else max(B.shape[1], C.shape[1])
    return regrouped(B, groups), regrouped(C, groups)


# The schemas are written out, so that the operands are listed once. Exported programs contain
# these operators by name: names and order must not change.
_OPERANDS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias"
)


@custom_op(
    "segresmamba::selective_scan",
    schema=f"({_OPERANDS}, bool softplus, bool keep, str backend) -> (Tensor, Tensor, Tensor)",
)
def _scan(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *operands, softplus, keep, backend = arguments
    return load(backend).scan_forward(ScanOperands(*operands), softplus, keep)


@_scan.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *operands, _, keep, backend = arguments
    u, _, A, *_ = operands
    last = u.new_empty(*u.shape[:2], A.shape[1], dtype=torch.float32)
    kept = load(backend).checkpoint_shape(ScanOperands(*operands)) if keep else (0,)
    return u.new_empty(u.shape), last, u.new_empty(kept, dtype=torch.float32)


@custom_op(
    "segresmamba::selective_scan_backward",
    schema=f"(Tensor dy, Tensor? d_last, {_OPERANDS}, Tensor checkpoints, bool softplus, "
    "str backend) -> Tensor[]",
)
def _scan_backward(dy: Tensor, d_last: Tensor | None, *arguments: Any) -> list[Tensor]:
    *operands, checkpoints, softplus, backend = arguments
    return load(backend).scan_backward(dy, d_last, ScanOperands(*operands), checkpoints, softplus)


@_scan_backward.register_fake
def _(dy: Tensor, d_last: Tensor | None, *arguments: Any) -> list[Tensor]:
    *operands, _, _, _ = arguments
    return [t.new_empty(t.shape) for t in operands if t is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, ctx.softplus, _, ctx.backend = inputs
    ctx.save_for_backward(*operands, output[2])
    # Else autograd would allocate zeros for the gradient of an output that nobody used.
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, dy: Tensor | None, d_last: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    *operands, checkpoints = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(operands[0])
    found = iter(_scan_backward(dy, d_last, *operands, checkpoints, ctx.softplus, ctx.backend))
    return (*(None if t is None else next(found) for t in operands), None, None, None)


_scan.register_autograd(_gradients, setup_context=_setup_context)
register_flop_formula(torch.ops.segresmamba.selective_scan)(flops.scan)
register_flop_formula(torch.ops.segresmamba.selective_scan_backward)(flops.scan_backward)
