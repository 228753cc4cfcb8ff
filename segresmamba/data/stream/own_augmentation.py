"""Random changes of another package, by `package.module:Class`.

Importing the module runs its code. So a configuration that names one is trusted like a program.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from textwrap import shorten
from typing import Any

import numpy as np
from torch import Tensor

from segresmamba.config import AugmentConfig
from segresmamba.config.plugins import make
from segresmamba.errors import ConfigError

Change = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]


def own_augmentation(config: AugmentConfig) -> Change | None:
    """What `augment.target` names; None if nothing.

    Raises:
        ConfigError: If it cannot be imported, made or called.
    """
    if config.target is None:
        return None
    return _made(config.target, json.dumps(config.kwargs, sort_keys=True))


def change_sample(
    change: Change, x_CDHW: Tensor, label_DHW: Tensor, rng: np.random.Generator
) -> None:
    """Make a change of one sample in place.

    Raises:
        ConfigError: If the change does not give an image and a label of the same size.
    """
    result: Any = change(x_CDHW, label_DHW, rng)
    parts = result if isinstance(result, tuple | list) else [result]
    shapes = [tuple(part.shape) for part in parts if isinstance(part, Tensor)]
    expected = [tuple(x_CDHW.shape), tuple(label_DHW.shape)]
    if shapes != expected:
        raise _refused(change, f"returned {shapes or type(result).__name__} for {expected}")
    for old, new in zip((x_CDHW, label_DHW), parts, strict=True):
        old.copy_(new)


@cache  # a batch asks again
def _made(target: str, keywords: str) -> Change:
    change: Change = make(target, json.loads(keywords), "augment")
    if not callable(change):
        raise _refused(target, f"made {type(change).__name__}, which cannot be called")
    return change


def _refused(change: object, got: str) -> ConfigError:
    return ConfigError(
        "the target does not work as an augmentation",
        where="augment.target",
        got=shorten(f"{change} {got}", 300),
        remedy="it is called with image (C, D, H, W), label (D, H, W) and a random generator, and "
        "returns image and label of the same size",
    )
