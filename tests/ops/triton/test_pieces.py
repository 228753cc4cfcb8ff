"""Chunks are walked in pieces, enough to fill a GPU; however they are cut, the scan is the same."""

from __future__ import annotations

import pytest
import torch

from segresmamba.ops import chunking, selective_scan, selective_scan_ref
from segresmamba.ops.kernels import ScanOperands
from segresmamba.ops.triton import scan as launcher
from tests.ops.operands import assert_same, gradients, scan_operands


@pytest.fixture
def user_sizes(monkeypatch):
    for name, size in {"CHUNK": 128, "LANES": 32}.items():
        monkeypatch.setattr(chunking, name, size)
    monkeypatch.setattr(launcher, "ROWS", 4)


@pytest.mark.parametrize(
    ("size", "pieces"),
    [((1, 96, 262144), 1), ((1, 96, 32768), 8), ((2, 384, 32768), 1), ((1, 96, 4096), 16)],
)
def test_short_sequences_are_cut_into_more_pieces(user_sizes, size, pieces):
    u_BDL = torch.empty(size, device="meta")
    A_DN, B_BGNL = u_BDL.new_empty(size[1], 16), u_BDL.new_empty(size[0], 1, 16, size[2])
    operands = ScanOperands(u_BDL, u_BDL, A_DN, B_BGNL, B_BGNL, None, None, None)
    scan = launcher.prepare(operands, softplus=True)
    assert scan.pieces == pieces
    walked = scan.walk_grid[0] * scan.steps * chunking.STEP
    assert walked == scan.chunks * chunking.CHUNK >= size[2]


@pytest.mark.parametrize("walks", [1, 10, 10**6])
def test_scans_agree_however_chunks_are_cut(monkeypatch, walks):
    monkeypatch.setattr(chunking, "CHUNK", 32)
    monkeypatch.setattr(chunking, "WALKS", walks)
    o = scan_operands(1, 3, 70, 2)
    y, last = selective_scan(**o, delta_softplus=True, return_last_state=True, backend="triton")
    expected, expected_last = selective_scan_ref(**o, delta_softplus=True, return_last_state=True)
    assert_same({"y": y, "last": last}, {"y": expected, "last": expected_last}, 1e-5)
    assert_same(gradients(y, o), gradients(expected, o), 2e-5)


def test_scan_at_the_sizes_that_users_get(user_sizes):
    o = scan_operands(1, 5, 130, 3)
    y, expected = selective_scan(**o, backend="triton"), selective_scan_ref(**o)
    assert_same({"y": y}, {"y": expected}, 1e-5)
    assert_same(gradients(y, o), gradients(expected, o), 5e-5)
