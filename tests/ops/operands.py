"""Random operands of the scans."""

from __future__ import annotations

import torch
from torch import Tensor

from segresmamba.ops.kernels import TriOperands


def scan_operands(
    batch: int = 2,
    channels: int = 6,
    length: int = 21,
    states: int = 4,
    *,
    matrix: str = "BNL",
    groups: int = 2,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Every operand of `selective_scan`, requiring gradients; B and C in the form asked for."""
    random = torch.Generator().manual_seed(seed)
    sizes = {"B": batch, "D": channels, "L": length, "N": states, "G": groups}

    def normal(layout: str) -> Tensor:
        return torch.randn([sizes[letter] for letter in layout], generator=random, dtype=dtype)

    operands = {
        "u": normal("BDL"),
        "delta": 0.5 * normal("BDL").abs(),
        "A": -normal("DN").exp(),
        "B": normal(matrix),
        "C": normal(matrix),
        "D": normal("D"),
        "z": normal("BDL"),
        "delta_bias": 0.1 * normal("D").abs(),
    }
    return {name: operand.requires_grad_() for name, operand in operands.items()}


def tri_operands(
    batch: int = 2,
    channels: int = 6,
    length: int = 24,
    states: int = 4,
    *,
    rank: int = 2,
    width: int = 4,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Every tensor of `tri_scan`, requiring gradients."""
    random = torch.Generator().manual_seed(seed)
    sizes = {
        "B": batch, "D": channels, "L": length, "N": states, "R": rank, "W": width, "K": 3,
        "P": rank + 2 * states,
    }  # fmt: skip
    scale = {"conv_weight_KDW": 0.5, "x_proj_KPD": channels**-0.5, "dt_proj_KDR": 0.5}
    operands = {
        name: scale.get(name, 1.0)
        * torch.randn(
            [sizes[letter] for letter in name.rpartition("_")[2]], generator=random, dtype=dtype
        )
        for name in TriOperands._fields
    }
    operands["A_KDN"] = -operands["A_KDN"].exp()
    return {name: operand.requires_grad_() for name, operand in operands.items()}


def gradients(output: Tensor, operands: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    """Gradients of a random projection of the output."""
    random = torch.Generator().manual_seed(seed)
    weights = torch.randn(output.shape, generator=random).to(output)
    found = torch.autograd.grad(output, list(operands.values()), weights)
    return dict(zip(operands, found, strict=True))


def assert_same(received: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Each tensor agrees, relative to its own largest value."""
    assert received.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = max(1.0, tensor.abs().max().item())
        error = (received[name].to(tensor) - tensor).abs().max().item() / scale
        assert error <= tolerance, f"{name} differs by {error:.2e} of its largest value"
