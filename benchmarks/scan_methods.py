"""Operands of the scan benchmark, and the methods with which it compares the project's scans."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from segresmamba.ops import selective_scan
from segresmamba.ops.orders import ORDERS, invert, scan_order_indices

STATES = 16


def scan_operands(
    batch: int, channels: int, length: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Operands like those of an untrained Mamba layer: A = -1..-16, step sizes about 0.01."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    operands = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": -torch.arange(1.0, STATES + 1, device=device).repeat(channels, 1),
        "B": normal(batch, STATES, length),
        "C": normal(batch, STATES, length),
        "D": torch.ones(channels, device=device),
        "delta_bias": torch.full((channels,), -4.6, device=device),
    }
    return {name: operand.requires_grad_() for name, operand in operands.items()}


def tri_operands(
    batch: int, channels: int, length: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Operands of a tri-oriented Mamba layer with this number of inner channels."""
    rank = math.ceil(channels / 2 / 16)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, device=device) * scale

    operands = {
        "x_BDL": normal(batch, channels, length).to(dtype),
        "z_BDL": normal(batch, channels, length).to(dtype),
        "conv_weight_KDW": normal(3, channels, 4, scale=0.5),
        "conv_bias_KD": normal(3, channels, scale=0.5),
        "x_proj_KPD": normal(3, rank + 2 * STATES, channels, scale=channels**-0.5),
        "dt_proj_KDR": normal(3, channels, rank, scale=rank**-0.5),
        "dt_bias_KD": torch.full((3, channels), -4.6, device=device),
        "A_KDN": -torch.arange(1.0, STATES + 1, device=device).repeat(3, channels, 1),
        "D_KD": torch.ones(3, channels, device=device),
    }
    return {name: operand.requires_grad_() for name, operand in operands.items()}


def chunked_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor,
    chunk: int = 64,
) -> Tensor:  # fmt: skip
    """The usual scan in PyTorch: one chunk after the other, each scanned by doubling."""
    delta = F.softplus(delta + delta_bias[:, None])
    state = u.new_zeros(*u.shape[:2], 1, A.shape[1])
    outputs = []
    parts = (t.split(chunk, dim=-1) for t in (delta, delta * u, B, C))
    for delta_c, input_c, B_c, C_c in zip(*parts, strict=True):
        decay = torch.exp(delta_c[..., None] * A[:, None])
        h = input_c[..., None] * B_c.mT[:, None]
        distance = 1
        while distance < h.shape[2]:
            later = h[:, :, distance:] + decay[:, :, distance:] * h[:, :, :-distance]
            h = torch.cat([h[:, :, :distance], later], dim=2)
            later = decay[:, :, distance:] * decay[:, :, :-distance]
            decay = torch.cat([decay[:, :, :distance], later], dim=2)
            distance *= 2
        h = h + decay * state
        state = h[:, :, -1:]
        outputs.append((h * C_c.mT[:, None]).sum(-1))
    return torch.cat(outputs, dim=2) + D[:, None] * u


def three_scans(o: dict[str, Tensor], num_slices: int, backend: str = "auto") -> Tensor:
    """What tri_scan replaces: for each order permute, convolve, project and scan a copy."""
    x, z = o["x_BDL"], o["z_BDL"]
    rank = o["dt_proj_KDR"].shape[2]
    y = torch.zeros_like(x)
    for k, order in enumerate(ORDERS):
        indices = scan_order_indices(order, x.shape[2], num_slices).to(x.device)
        weight, bias, x_proj, dt_proj = (
            o[name][k].to(x.dtype)
            for name in ("conv_weight_KDW", "conv_bias_KD", "x_proj_KPD", "dt_proj_KDR")
        )
        padded = F.pad(x[..., indices], (weight.shape[1] - 1, 0))
        u = F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(weight)))
        step, B, C = (x_proj @ u).split([rank, STATES, STATES], dim=1)
        scanned = selective_scan(
            u, dt_proj @ step, o["A_KDN"][k], B, C, o["D_KD"][k], z[..., indices],
            o["dt_bias_KD"][k], True, backend=backend,
        )  # fmt: skip
        y = y + scanned[..., invert(indices)]
    return y
