"""Checks and renames state dicts of other people's code.

torch's own `load_state_dict` lists every key that differs, which for another network are hundreds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_SHOWN = 2


def renamed(name: str, names: Iterable[tuple[str, str]]) -> str:
    """The name that the first matching pattern gives, or the name itself if none matches."""
    for pattern, other in names:
        if match := re.fullmatch(pattern, name):
            return match.expand(other)
    return name


def refuse_differences(
    expected: Mapping[str, tuple[int, ...]], got: Mapping[str, Tensor], network: str
) -> None:
    """Refuse a state dict whose keys or shapes are not those of a network.

    Args:
        expected: Shapes by key.
        got: The state dict. Its values may be anything, since checkpoints hold more than tensors.
        network: Name of the network, for the message.

    Raises:
        ValueError: With the first keys of each kind of difference, and their shapes.
    """
    wrong = [key for key in expected if key in got and _shape(got[key]) != str(expected[key])]
    kinds = (
        [f"{key} is {_shape(got[key])} instead of {expected[key]}" for key in wrong],
        [f"{key} {shape} is missing" for key, shape in expected.items() if key not in got],
        [f"{key} {_shape(got[key])} has no place" for key in got if key not in expected],
    )
    differences = []
    for kind in kinds:
        differences += kind[:_SHOWN]
        if len(kind) > _SHOWN:
            differences.append(f"and {len(kind) - _SHOWN} more of those")
    if differences:
        raise ValueError(f"the state dict is not that of {network}: {'; '.join(differences)}")


def _shape(value: object) -> str:
    """The shape of a tensor, or the type of anything else."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
