"""Kernels are kept on disk where that is possible, and work where it is not."""

from __future__ import annotations

import logging

import numba.core.caching
import numpy as np

from segresmamba.ops.cpu.jit import kernel


def _double(x):
    for i in range(x.shape[0]):
        x[i] *= np.float32(2.0)


def test_kernel_without_a_writable_cache_folder(monkeypatch, caplog):
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    with caplog.at_level(logging.INFO, "segresmamba.ops.cpu"):
        compiled = kernel("void(float32[::1])")(_double)
    x = np.ones(3, np.float32)
    compiled(x)
    assert x.tolist() == [2.0, 2.0, 2.0]
    assert "compiled kernels are not kept" in caplog.text
