"""State dicts of other people's code: whether they are what they are taken for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_SHOWN = 2


def renamed(name: str, names: Iterable[tuple[str, str]]) -> str:
    """The name by the first pattern that matches all of it; itself if none does."""
    for pattern, other in names:
        if match := re.fullmatch(pattern, name):
            return match.expand(other)
    return name


def refuse_differences(
    expected: Mapping[str, tuple[int, ...]], got: Mapping[str, Tensor], network: str
) -> None:
    """See that a state dict has the keys and shapes of a network.

    Args:
        expected: Shapes by key.
        got: What was given; values may be anything.
        network: Whose state dict it should be, for the message.

    Raises:
        ValueError: With the first keys of each kind of difference, and their shapes.
    """
    wrong = [key for key in expected if key in got and _shape(got[key]) != str(expected[key])]
    kinds = (
        [f"{key} is {_shape(got[key])} instead of {expected[key]}" for key in wrong],
        [f"{key} {shape} is missing" for key, shape in expected.items() if key not in got],
        [f"{key} {_shape(got[key])} has no place" for key in got if key not in expected],
    )
    if any(kinds):
        differences = "; ".join(_first(kind) for kind in kinds if kind)
        raise ValueError(f"the state dict is not that of {network}: {differences}")


def _first(differences: list[str]) -> str:
    more = len(differences) - _SHOWN
    return "; ".join(differences[:_SHOWN]) + (f"; and {more} more of those" if more > 0 else "")


def _shape(value: object) -> str:
    """Of what should be a tensor: checkpoints may hold anything."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
