"""Full weights in one file, together with what is needed to use them.

`task.weights_file` says what the file looks like. The weights of a large network take hundreds of
MB, so `read_facts` leaves them on the disk and checks the facts alone.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segresmamba import data
from segresmamba.config import Config
from segresmamba.errors import CheckpointError
from segresmamba.storage.atomic import atomic_path
from segresmamba.storage.patience import patiently
from segresmamba.task import weights_file
from segresmamba.task.classes import Classes
from segresmamba.task.task import build_network

logger = logging.getLogger(__name__)

_ANEW = (
    "delete it: the same training command goes on from the newest checkpoint and validates, which "
    "writes it anew"
)


@dataclass(frozen=True)
class WeightsFacts:
    """What is known of full weights."""

    step: int
    dice: float | None
    """Mean Dice of the validation that chose them; None if nothing was held out."""
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
    """Write full weights and facts into one file, atomically and patiently."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "step": facts.step,
        "dice": facts.dice,
        "labels": dict(facts.labels),
        "channel_names": list(facts.channel_names),
        "preprocessing": facts.preprocessing.model_dump(mode="json"),
    }

    def write() -> None:
        with atomic_path(path) as temporary:
            weights_file.write_file(temporary, weights, content)

    patiently(write, path, sum(tensor.nbytes for tensor in weights.values()))


def save_torch(content: Any, path: Path) -> None:
    """Write a file that `torch.load` reads.

    Raises:
        OSError: If it cannot be written. torch hides that, most often a full disk, behind a
            RuntimeError about positions in the file.
    """
    # torch gets a file, not a path: it would write the path's name into the file.
    with _RememberingFile(FileIO(path, "w")) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if file.error is not None:
                raise file.error from error
            raise


class _RememberingFile(BufferedWriter):
    """A file that remembers why it could not be written."""

    error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.error = error
            raise


def read_facts(path: Path) -> WeightsFacts:
    """Read the facts without the weights, which are not checked either.

    Raises:
        CheckpointError: If the file is missing, or damaged where the facts are.
    """
    with _damage_named(path):
        return _facts(weights_file.read_facts(path))


def load_network(path: Path, config: Config) -> TrainedNetwork:
    """Build the network of a run and load its best weights, on the CPU.

    Args:
        path: The file that `save_weights` wrote, now or in an earlier version.
        config: The run's configuration.

    Raises:
        CheckpointError: If the file is missing, damaged, or of another architecture, or if a weight
            is not finite.
    """
    weights, facts = read_weights(path)
    classes = Classes.from_labels(config, facts.labels)
    network = build_network(config, len(facts.channel_names), classes.channels)
    check_shapes({name: list(w.shape) for name, w in weights.items()}, shapes_of(network), path)
    network.load_state_dict(weights)
    if facts.dice is None:
        logger.info("weights of step %d, the last one: nothing was held out", facts.step)
    else:
        logger.info("weights of step %d, Dice %.4f in training", facts.step, facts.dice)
    return TrainedNetwork(network, classes, facts)


def read_weights(path: Path) -> tuple[dict[str, Tensor], WeightsFacts]:
    """Read a file that `save_weights` wrote, and check it.

    Raises:
        CheckpointError: If the file is missing or damaged, or if a weight is not finite.
    """
    with _damage_named(path):
        weights, content = weights_file.read_file(path)
        facts = _facts(content)
    if broken := first_not_finite(weights.items()):
        raise CheckpointError(
            "the weights are not all finite numbers",
            where=path,
            got=f"{broken} has nan or inf",
            remedy=f"{_ANEW}; if its newest checkpoint has such weights too, train again",
        )
    return weights, facts


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


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that has nan or inf among its values."""
    for name, values in tensors:
        # A sum takes no memory, and with nan or inf in it is neither finite. Finite numbers can add
        # up to inf, too.
        if not values.sum().isfinite() and not values.isfinite().all():
            return name
    return None


def _facts(content: Mapping[str, Any]) -> WeightsFacts:
    return WeightsFacts(
        step=content["step"],
        dice=content["dice"],
        # Earlier versions saved none of these, and trained without a policy.
        labels=content.get("labels", {}),
        channel_names=content.get("channel_names", ()),
        preprocessing=data.Preprocessing.model_validate(content.get("preprocessing", {})),
    )


def reading_problem(error: Exception) -> str:
    """One line on why a file of weights could not be read."""
    if isinstance(error, pickle.UnpicklingError):  # torch's text says how to load it all the same
        return "a pickle with other things than tensors, which may run any code; it is not opened"
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what reading damaged weights raises into an error that names the file."""
    try:
        yield
    except Exception as error:  # the libraries raise whatever the damaged bytes provoke
        raise CheckpointError(
            "the weights cannot be read",
            where=path,
            got=reading_problem(error),
            remedy=f"name a run that has finished a validation; if the file is damaged, {_ANEW}",
        ) from error
