"""Full weights in one file, together with what is needed to use them.

The file holds a dictionary: "weights", and beside it the fields of `WeightsFacts`. The weights of a
large network take hundreds of MB, so `read_facts` leaves them on the disk.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segresmamba import data
from segresmamba.config import Config
from segresmamba.errors import CheckpointError
from segresmamba.storage.atomic import atomic_path
from segresmamba.task.classes import Classes
from segresmamba.task.task import build_network

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightsFacts:
    """What is known of full weights."""

    step: int
    dice: float
    """Mean Dice of the validation that chose them."""
    labels: Mapping[str, int]
    """Name to value of each label of the dataset."""
    channel_names: Sequence[str]
    preprocessing: data.Preprocessing


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with its best weights."""

    network: nn.Module
    classes: Classes
    facts: WeightsFacts


def save_weights(path: Path, weights: Mapping[str, Tensor], facts: WeightsFacts) -> None:
    """Write full weights and facts into one file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {  # plain types only: files are read with `weights_only`, which takes no others
        "weights": dict(weights),
        "step": facts.step,
        "dice": facts.dice,
        "labels": dict(facts.labels),
        "channel_names": list(facts.channel_names),
        "preprocessing": facts.preprocessing.model_dump(mode="json"),
    }
    # Given a path, torch would write the temporary file's name into the file.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def read_facts(path: Path) -> WeightsFacts:
    """Read the facts without the weights.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    # A mapped file is read where a tensor is used, and no tensor is used here.
    return _read(path, mmap=True)[1]


def load_network(path: Path, config: Config) -> TrainedNetwork:
    """Build the network of a run and load its best weights, on the CPU.

    Args:
        path: The file that `save_weights` wrote, now or in an earlier version.
        config: The run's configuration.

    Raises:
        CheckpointError: If the file is missing, damaged, or of another architecture.
    """
    # Not mapped: should another computer replace the file meanwhile, access to a mapped page could
    # kill this process, where reading raises an error.
    weights, facts = _read(path, mmap=False)
    classes = Classes.from_labels(config, facts.labels)
    network = build_network(config, len(facts.channel_names), classes.channels)
    check_shapes({name: list(w.shape) for name, w in weights.items()}, shapes_of(network), path)
    network.load_state_dict(weights)
    logger.info("weights of step %d, Dice %.4f in training", facts.step, facts.dice)
    return TrainedNetwork(network, classes, facts)


def shapes_of(network: nn.Module) -> dict[str, list[int]]:
    """Names and shapes of a network's weights, by which two architectures are compared."""
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


def _read(path: Path, *, mmap: bool) -> tuple[dict[str, Tensor], WeightsFacts]:
    try:
        content: dict[str, Any] = torch.load(path, "cpu", weights_only=True, mmap=mmap)
        return content["weights"], WeightsFacts(
            step=content["step"],
            dice=content["dice"],
            # Earlier versions saved none of these, and trained without a policy.
            labels=content.get("labels", {}),
            channel_names=content.get("channel_names", ()),
            preprocessing=data.Preprocessing.model_validate(content.get("preprocessing", {})),
        )
    except Exception as error:  # torch raises whatever the damaged bytes provoke
        raise CheckpointError(
            "the weights cannot be read",
            where=path,
            got=(str(error).splitlines() or [type(error).__name__])[0],
            remedy="name a run that has finished a validation; the same training command goes on "
            "from the last checkpoint and validates (delete the file if it is damaged)",
        ) from error
