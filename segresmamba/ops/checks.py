"""Refuses operands that the scans cannot compute, before any kernel starts.

Kernels trust the sizes that they receive: operands that do not fit would crash them or give wrong
numbers.

Shape letters: B batch, D channels, L tokens, N states, G groups, K = 3 orders, W convolution
width, R step-size rank, P = R + 2 N.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segresmamba.ops.kernels import ScanOperands, TriOperands
from segresmamba.ops.orders import ORDERS, check_slices

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Kernels count tokens with 32 bits, to the end of the last chunk.
_LARGEST_LENGTH = 2**31 - 2**16
# B and C are missing here: they come in several forms.
_SCAN_LAYOUTS = {"delta": "BDL", "A": "DN", "D": "D", "z": "BDL", "delta_bias": "D"}


def check_scan(operands: ScanOperands) -> None:
    """Refuse operands of `selective_scan` that do not fit together.

    Raises:
        ValueError: Naming the operand, the shape, dtype or device received and the one expected.
        NotImplementedError: Complex A, or a sequence beyond 32-bit indices.
    """
    named = dict(zip(operands._fields, operands, strict=True))
    sizes = dict(zip("BDL", _shape("u", operands.u, "BDL"), strict=True))
    if operands.A.is_complex():
        raise NotImplementedError("A is complex; only real state matrices are supported")
    sizes["N"] = _shape("A", operands.A, "DN")[1]
    for name, layout in _SCAN_LAYOUTS.items():
        operand = named[name]
        if operand is not None:
            _match(name, operand, layout, sizes)
    for name, matrix in (("B", operands.B), ("C", operands.C)):
        layout = {2: "DN", 4: "BGNL"}.get(matrix.ndim, "BNL")
        _match(name, matrix, layout, sizes)
        if layout == "BGNL" and (not matrix.shape[1] or sizes["D"] % matrix.shape[1]):
            raise ValueError(
                f"the groups of {name} must divide the channels: got {matrix.shape[1]} groups for "
                f"{sizes['D']} channels"
            )
    _check_kinds(named)
    _check_length(sizes["L"])


def check_tri(operands: TriOperands, num_slices: int) -> None:
    """Refuse operands of `tri_scan` that do not fit together.

    The letters after the last underscore of an operand's name are its dimensions.

    Raises:
        ValueError: As in `check_scan`, or for a slice count that does not divide L.
        NotImplementedError: As in `check_scan`.
    """
    if operands.A_KDN.is_complex():
        raise NotImplementedError("A_KDN is complex; only real state matrices are supported")
    sizes = {"K": len(ORDERS)}
    named = dict(zip(operands._fields, operands, strict=True))
    for name, operand in named.items():
        layout = name.rpartition("_")[2]
        for letter, size in zip(layout, _shape(name, operand, layout), strict=True):
            sizes.setdefault(letter, size)
        _match(name, operand, layout, sizes)
    if sizes["P"] != sizes["R"] + 2 * sizes["N"]:
        raise ValueError(
            f"x_proj_KPD must project to R + 2 N = {sizes['R']} + 2 * {sizes['N']} features: "
            f"got {sizes['P']}"
        )
    _check_kinds(dict(named))
    _check_length(sizes["L"])
    check_slices(sizes["L"], num_slices)


def _shape(name: str, operand: Tensor, layout: str) -> torch.Size:
    if operand.ndim != len(layout):
        raise ValueError(
            f"{name} must have the dimensions ({', '.join(layout)}): got shape "
            f"{tuple(operand.shape)}"
        )
    return operand.shape


def _match(name: str, operand: Tensor, layout: str, sizes: dict[str, int]) -> None:
    received = _shape(name, operand, layout)
    expected = tuple(sizes.get(c, s) for c, s in zip(layout, received, strict=True))
    if tuple(received) != expected:
        raise ValueError(
            f"{name} must have the shape ({', '.join(layout)}) = {expected}: got {tuple(received)}"
        )


def _check_kinds(operands: dict[str, Tensor | None]) -> None:
    device = next(iter(operands.values())).device  # type: ignore[union-attr]
    for name, operand in operands.items():
        if operand is None:
            continue
        if operand.dtype not in FLOATS:
            choices = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
            raise ValueError(f"{name} must be one of {choices}: got {operand.dtype}")
        if operand.device != device:
            raise ValueError(f"{name} must be on {device}, where u or x is: got {operand.device}")


def _check_length(length: int) -> None:
    if length < 1:
        raise ValueError("the sequence has no tokens (L = 0)")
    if length > _LARGEST_LENGTH:
        raise NotImplementedError(
            f"the sequence has {length} tokens; kernels count to {_LARGEST_LENGTH}"
        )
