"""Full weights in one file, together with what is needed to use them.

The file holds a dictionary: "weights", beside it the fields of `WeightsFacts`, and "digests" of
both. The weights of a large network take hundreds of MB, so `read_facts` leaves them on the disk
and checks the facts alone.
"""

from __future__ import annotations

import logging
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
from segresmamba.storage.digest import digest_of, json_digest
from segresmamba.storage.patience import patiently
from segresmamba.task.classes import Classes
from segresmamba.task.task import build_network

logger = logging.getLogger(__name__)

# What earlier versions saved, which wrote no digests.
_WITHOUT_DIGESTS = {"weights", "step", "dice", "labels", "channel_names", "preprocessing"}
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
    content: dict[str, Any] = {  # plain types only, which `weights_only` reads
        "weights": dict(weights),
        "step": facts.step,
        "dice": facts.dice,
        "labels": dict(facts.labels),
        "channel_names": list(facts.channel_names),
        "preprocessing": facts.preprocessing.model_dump(mode="json"),
    }
    content["digests"] = {
        "facts": _facts_digest(content),
        "weights": _weights_digest(content["weights"]),
    }

    def write() -> None:
        with atomic_path(path) as temporary:
            save_torch(content, temporary)

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
    # A mapped file is read where a tensor is used, and no tensor is used here.
    with _damage_named(path):
        return _facts(_read(path, mmap=True))


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
    # Not mapped: should another computer replace the file meanwhile, access to a mapped page could
    # kill this process, where reading raises an error.
    with _damage_named(path):
        content = _read(path, mmap=False)
        weights: dict[str, Tensor] = content["weights"]
        facts = _facts(content)
        if "digests" in content:
            _compare("weights", content["digests"], _weights_digest(weights))
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


def _read(path: Path, *, mmap: bool) -> dict[str, Any]:
    """What the file holds, with its facts checked."""
    content: dict[str, Any] = torch.load(path, "cpu", weights_only=True, mmap=mmap)
    if "digests" in content:
        _compare("facts", content["digests"], _facts_digest(content))
    elif unknown := content.keys() - _WITHOUT_DIGESTS:
        raise ValueError(f"unknown entries: {sorted(map(str, unknown))}")
    return content


def _facts(content: Mapping[str, Any]) -> WeightsFacts:
    return WeightsFacts(
        step=content["step"],
        dice=content["dice"],
        # Earlier versions saved none of these, and trained without a policy.
        labels=content.get("labels", {}),
        channel_names=content.get("channel_names", ()),
        preprocessing=data.Preprocessing.model_validate(content.get("preprocessing", {})),
    )


def _compare(what: str, digests: Mapping[str, str], found: str) -> None:
    if found != digests[what]:
        raise ValueError(f"checksum of the {what}: {found}, written with {digests[what]}")


def _facts_digest(content: Mapping[str, Any]) -> str:
    facts = {key: value for key, value in content.items() if key not in {"weights", "digests"}}
    return json_digest(facts)


def _weights_digest(weights: Mapping[str, Tensor]) -> str:
    """The digest of names, types, shapes and values, however the file stores them."""

    def parts() -> Iterator[Any]:
        for name, values in sorted(weights.items()):
            yield f"{name} {values.dtype} {list(values.shape)}\n".encode()
            yield values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()

    return digest_of(parts())


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what reading damaged weights raises into an error that names the file."""
    try:
        yield
    except Exception as error:  # torch raises whatever the damaged bytes provoke
        raise CheckpointError(
            "the weights cannot be read",
            where=path,
            got=(str(error).splitlines() or [type(error).__name__])[0],
            remedy=f"name a run that has finished a validation; if the file is damaged, {_ANEW}",
        ) from error
