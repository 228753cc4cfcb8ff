"""Full weights in one file, with a few facts about them: what a trained network is used by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segresmamba.errors import CheckpointError
from segresmamba.storage.atomic import atomic_path


def shapes_of(network: nn.Module) -> dict[str, list[int]]:
    """Names and shapes of a network's weights: the architecture's identity."""
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def check_shapes(
    found: Mapping[str, list[int]], expected: Mapping[str, list[int]], where: Path
) -> None:
    """Refuse weights of another architecture.

    Raises:
        CheckpointError: Names the first weights that differ.
    """
    different = [
        f"{name}: {found.get(name, 'absent')} in the checkpoint, "
        f"{expected.get(name, 'absent')} in the network"
        for name in dict.fromkeys([*expected, *found])
        if found.get(name) != expected.get(name)
    ]
    if different:
        raise CheckpointError(
            f"the checkpoint holds another architecture ({len(different)} weights differ)",
            where=where,
            got="; ".join(different[:3]),
            remedy="use the model settings it was trained with, or another run.name",
        )


def save_weights(path: Path, weights: Mapping[str, Tensor], **facts: Any) -> None:
    """Write full weights and a few plain facts about them, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        torch.save({"weights": dict(weights), **facts}, temporary)


def read_facts(path: Path) -> dict[str, Any]:
    """The facts that were saved beside full weights.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    content = _read_weights_file(path)
    del content["weights"]
    return content


def load_weights(path: Path, network: nn.Module) -> dict[str, Any]:
    """Load full weights into a network.

    Returns:
        The facts that were saved beside the weights.

    Raises:
        CheckpointError: If the file is missing, damaged, or of another architecture.
    """
    content = _read_weights_file(path)
    weights: dict[str, Tensor] = content.pop("weights")
    check_shapes({name: list(w.shape) for name, w in weights.items()}, shapes_of(network), path)
    network.load_state_dict(weights)
    return content


def _read_weights_file(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        content["weights"]
    except Exception as error:  # torch raises whatever the damaged bytes provoke
        raise CheckpointError(
            "the weights cannot be read",
            where=path,
            got=(str(error).splitlines() or [type(error).__name__])[0],
            remedy="name a run that has finished a validation; the same training command goes on "
            "from the last checkpoint and validates (delete the file if it is damaged)",
        ) from error
    return content
