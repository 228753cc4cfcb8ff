"""Backends and sizes of the kernels' tests; without a GPU tests/conftest.py interprets Triton."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch


@dataclass(frozen=True)
class Backend:
    """A kernel backend, and operands of a size that suits how fast it runs here."""

    name: str
    size: dict[str, int]
    """Sizes of selective_scan's operands."""
    tri_size: dict[str, int]
    """Sizes of tri_scan's operands."""
    volumes: dict[tuple[int, int, int], tuple[int, ...]]
    """Volumes (D, H, W) for tri_scan, each with its slice counts."""
    bfloat16_tolerance: float
    """Relative tolerance of tri_scan: the cpu backend rounds once, the GPU's after every step."""


def divisors(volume: tuple[int, int, int]) -> tuple[int, ...]:
    """Every slice count that cuts the tokens of a volume into equal slices."""
    tokens = math.prod(volume)
    return tuple(slices for slices in range(1, tokens + 1) if tokens % slices == 0)


EPS = torch.finfo(torch.bfloat16).eps
BACKENDS = {
    # Two blocks of channels, two tiles of tokens, two vectors of states, all of them ragged.
    "cpu": Backend(
        "cpu",
        {"batch": 2, "channels": 20, "length": 75, "states": 18},
        {"batch": 2, "channels": 20, "length": 75, "states": 18},
        {volume: divisors(volume) for volume in ((4, 4, 4), (2, 5, 9), (6, 4, 5))},
        EPS,
    ),
    # Interpreted, and so small: two blocks of rows and of lanes, two chunks of tokens.
    "triton": Backend(
        "triton",
        {"batch": 2, "channels": 6, "length": 11, "states": 2},
        {"batch": 1, "channels": 3, "length": 12, "states": 2},
        {(2, 3, 2): divisors((2, 3, 2))},
        8 * EPS,
    ),
}


if torch.cuda.is_available():
    del BACKENDS["triton"]  # compiled there, for tensors on the GPU: see test_gpu.py


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each kernel backend, and with `volume` each of its volumes in each slice count."""
    if "volume" in metafunc.fixturenames:
        cases = [
            pytest.param(backend, volume, slices, id=f"{backend.name}-{volume}-{slices}")
            for backend in BACKENDS.values()
            for volume, counts in backend.volumes.items()
            for slices in counts
        ]
        metafunc.parametrize(("backend", "volume", "num_slices"), cases)
    elif "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", list(BACKENDS.values()), ids=list(BACKENDS))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the triton backend cut small operands into several chunks and blocks of rows."""
    for name, size in {
        "chunking.CHUNK": 8, "chunking.LANES": 4, "chunking.CONV_TOKENS": 8,
        "triton.scan.ROWS": 2, "triton.tri.ROWS": 2, "triton.scan.PASS_BLOCK": 4,
    }.items():  # fmt: skip
        monkeypatch.setattr(f"segresmamba.ops.{name}", size)
