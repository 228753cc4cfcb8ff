"""Runs Triton's kernels in its interpreter where there is no GPU."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads this once, when the first kernel is defined.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@dataclass(frozen=True)
class Backend:
    """A kernel backend, and operands of a size that suits how fast it runs here."""

    name: str
    size: dict[str, int]
    volumes: tuple[tuple[int, int, int], ...]
    bfloat16_tolerance: float


BACKENDS = {
    # Two blocks of channels, two tiles of tokens, two vectors of states, all of them ragged.
    "cpu": Backend(
        "cpu",
        {"batch": 2, "channels": 20, "length": 75, "states": 18},
        ((4, 4, 4), (2, 5, 9), (6, 4, 5)),
        torch.finfo(torch.bfloat16).eps,
    ),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each kernel backend, and with `volume` each of its volumes in each slice count."""
    names = metafunc.fixturenames
    if "volume" in names:
        cases = [
            pytest.param(backend, volume, slices, id=f"{backend.name}-{volume}-{slices}")
            for backend in BACKENDS.values()
            for volume in backend.volumes
            for slices in range(1, math.prod(volume) + 1)
            if math.prod(volume) % slices == 0
        ]
        metafunc.parametrize(("backend", "volume", "num_slices"), cases)
    elif "backend" in names:
        metafunc.parametrize("backend", list(BACKENDS.values()), ids=list(BACKENDS))
