"""Every operand that does not fit is refused by name before a kernel starts."""

from __future__ import annotations

import pytest
import torch

from segresmamba.ops import selective_scan, tri_scan
from tests.ops.operands import scan_operands, tri_operands

MISFITS = [
    ("u", torch.zeros(6, 21), r"u must have the dimensions \(B, D, L\): got shape \(6, 21\)"),
    ("delta", torch.zeros(2, 6, 20), r"delta must .* = \(2, 6, 21\): got \(2, 6, 20\)"),
    ("A", torch.zeros(4), r"A must have the dimensions \(D, N\): got shape \(4,\)"),
    ("A", torch.zeros(5, 4), r"A must have the shape \(D, N\) = \(6, 4\): got \(5, 4\)"),
    ("B", torch.zeros(2, 3, 21), r"B must have the shape \(B, N, L\) = \(2, 4, 21\): got"),
    ("B", torch.zeros(2, 4, 4, 21), "groups of B must divide the channels: got 4 groups for 6"),
    ("B", torch.zeros(2, 0, 4, 21), "groups of B must divide the channels: got 0 groups for 6"),
    ("C", torch.zeros(6, 5), r"C must have the shape \(D, N\) = \(6, 4\): got \(6, 5\)"),
    ("C", torch.zeros(4), r"C must have the dimensions \(B, N, L\): got shape \(4,\)"),
    ("D", torch.zeros(7), r"D must have the shape \(D\) = \(6,\): got \(7,\)"),
    ("z", torch.zeros(1, 6, 21), r"z must have the shape .* = \(2, 6, 21\): got \(1, 6, 21\)"),
    ("delta_bias", torch.zeros(6, 1), r"delta_bias must have the dimensions \(D\): got shape"),
    ("u", torch.zeros(2, 6, 21, dtype=torch.int32), "u must be one of float32, .* got torch.int32"),
    ("z", torch.zeros(2, 6, 21, device="meta"), "z must be on cpu, .* got meta"),
]


@pytest.mark.parametrize(("name", "misfit", "message"), MISFITS)
def test_scan_refuses(name, misfit, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(**scan_operands() | {name: misfit})


def test_complex_state_matrices_are_refused():
    with pytest.raises(NotImplementedError, match="A is complex"):
        selective_scan(**scan_operands() | {"A": torch.zeros(6, 4, dtype=torch.complex64)})
    o = tri_operands() | {"A_KDN": torch.zeros(3, 6, 4, dtype=torch.complex64)}
    with pytest.raises(NotImplementedError, match="A_KDN is complex"):
        tri_scan(**o, num_slices=4)


def test_sequences_beyond_32_bit_indices_are_refused():
    long = torch.zeros(1, 1, 1).expand(1, 1, 2**31)
    with pytest.raises(NotImplementedError, match="2147483648 tokens; kernels count to"):
        selective_scan(long, long, torch.zeros(1, 1), long, long)
    o = tri_operands(1, 1, 1) | {"x_BDL": long, "z_BDL": long}
    with pytest.raises(NotImplementedError, match="2147483648 tokens; kernels count to"):
        tri_scan(**o, num_slices=1)


def test_sequences_without_tokens_are_refused():
    with pytest.raises(ValueError, match="no tokens"):
        selective_scan(**scan_operands(length=0))


TRI_MISFITS = [
    ("x_BDL", torch.zeros(6, 24), r"x_BDL must have the dimensions \(B, D, L\): got shape"),
    ("z_BDL", torch.zeros(2, 5, 24), r"z_BDL must have the shape .* = \(2, 6, 24\): got"),
    ("conv_weight_KDW", torch.zeros(2, 6, 4), r"conv_weight_KDW .* = \(3, 6, 4\): got \(2, 6, 4\)"),
    ("conv_bias_KD", torch.zeros(6), r"conv_bias_KD must have the dimensions \(K, D\)"),
    ("x_proj_KPD", torch.zeros(3, 9, 6), r"must project to R \+ 2 N = 2 \+ 2 \* 4 .*: got 9"),
    ("dt_proj_KDR", torch.zeros(3, 6, 3), r"must project to R \+ 2 N = 3 \+ 2 \* 4 .*: got 10"),
    ("dt_bias_KD", torch.zeros(3, 5), r"dt_bias_KD must have the shape \(K, D\) = \(3, 6\)"),
    ("A_KDN", torch.zeros(3, 5, 4), r"A_KDN must have the shape .* = \(3, 6, 4\)"),
    ("D_KD", torch.zeros(3, 6, dtype=torch.bool), "D_KD must be one of float32, .* torch.bool"),
    ("D_KD", torch.zeros(3, 6, device="meta"), "D_KD must be on cpu"),
]


@pytest.mark.parametrize(("name", "misfit", "message"), TRI_MISFITS)
def test_tri_scan_refuses(name, misfit, message):
    with pytest.raises(ValueError, match=message):
        tri_scan(**tri_operands() | {name: misfit}, num_slices=4)


@pytest.mark.parametrize("num_slices", [0, 5, 48])
def test_slices_that_do_not_divide_the_tokens_are_refused(num_slices):
    with pytest.raises(ValueError, match=rf"num_slices={num_slices} for 24 tokens"):
        tri_scan(**tri_operands(), num_slices=num_slices)
