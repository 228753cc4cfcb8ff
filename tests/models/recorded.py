"""The numbers that recorded networks were computed with; fixtures/README.md says how."""

from __future__ import annotations

import json
import math
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

FIXTURES = Path(__file__).parent / "fixtures"


def shapes(name: str) -> dict[str, list[int]]:
    """The shapes of a recorded network's state dict."""
    loaded: dict[str, list[int]] = json.loads((FIXTURES / name).read_text())
    return loaded


def uniform(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) that depend on the key alone."""
    generator = np.random.default_rng(crc32(key.encode()))
    return generator.random(shape, dtype=np.float32) * 2 - 1


def weight(key: str, shape: tuple[int, ...]) -> Tensor:
    """The rule by which recorded networks' weights were made."""
    numbers = uniform(key, shape)
    if len(shape) < 2:
        return torch.from_numpy(numbers / 4 + (1 if key.endswith("weight") else 0))
    return torch.from_numpy(numbers * np.float32(math.sqrt(3 / math.prod(shape[1:]))))


def relative_error(network: nn.Module, recorded: str, size: tuple[int, int, int]) -> float:
    """Largest difference to the recorded logits of an input, over the largest of those.

    The network computes in the type of its parameters.
    """
    x_BCDHW = torch.from_numpy(uniform("input", (1, 4, *size)))
    with torch.inference_mode():
        logits = network(x_BCDHW.to(next(network.parameters()).dtype))[..., ::3, ::5, ::5]
    expected = np.load(FIXTURES / recorded)["x".join(map(str, size))]
    return float(np.abs(logits.numpy() - expected).max() / np.abs(expected).max())
