"""Weights that a new run starts from, `train.init_from`: of a run, of a file, or released ones.

What fits by name and shape is taken. A layer that differs only in the number of input channels is
adapted, everything else of the network starts fresh, and both are named.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from segresmamba import models
from segresmamba.errors import ConfigError
from segresmamba.storage.atomic import write_text
from segresmamba.storage.run_folder import RunFolder, best_weights
from segresmamba.task import weights_file
from segresmamba.task.task import Task
from segresmamba.task.weights import first_not_finite, read_weights, reading_problem

logger = logging.getLogger(__name__)

_NESTED = ("weights", "state_dict", "model", "model_state_dict", "network_weights")
_WRAPPER = "module."
_SHOWN = 12


@dataclass(frozen=True)
class StartingWeights:
    """Where the weights of a network came from, by name."""

    source: str
    taken: Sequence[str]
    """Loaded as they were."""
    adapted: Sequence[str]
    """Loaded for another number of input channels, with both shapes."""
    fresh: Sequence[str]
    """Not loaded, with the reason."""
    unused: Sequence[str]
    """In the file, without a place in the network."""

    def __str__(self) -> str:
        """One line of counts, then the names that differ."""
        parts = {"adapted": self.adapted, "fresh": self.fresh, "unused": self.unused}
        counts = ", ".join(f"{len(names)} {part}" for part, names in parts.items())
        lines = [f"{self.source}: {len(self.taken)} weights taken, {counts}"]
        for part, names in parts.items():
            lines += [f"  {part}: {name}" for name in names[:_SHOWN]]
            if len(names) > _SHOWN:
                lines.append(f"  {part}: and {len(names) - _SHOWN} more")
        return "\n".join(lines)

    def keep(self, path: Path) -> None:
        """Write the record, for the run to know it when it goes on."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")


def starting_weights(task: Task, network: nn.Module, run: RunFolder) -> StartingWeights | None:
    """Load the weights that a run starts from into its network.

    A run that has a checkpoint goes on from that. Then nothing is loaded, and the source need not
    exist any more.

    Args:
        task: What is trained; `train.init_from` names the source.
        network: The task's new network.
        run: The run's folder, which need not exist.

    Returns:
        What was loaded, now or when the run began; None without a source.

    Raises:
        UserError: If the source cannot be read, or nothing in it fits the network.
    """
    source = task.config.train.init_from
    if source is None:
        return None
    resumes = bool(run.saved_steps())
    if resumes:
        logger.info("train.init_from=%s: the run goes on from its own checkpoint", source)
        if run.init_from.exists():
            return StartingWeights(**json.loads(run.init_from.read_text(encoding="utf-8")))
    found = load_starting_weights(source, network, len(task.dataset.channel_names))
    if not resumes:
        logger.info("starting from %s", found)
    return found


def load_starting_weights(source: Path, network: nn.Module, in_channels: int) -> StartingWeights:
    """Load what fits into a network, which stays as it is if nothing does.

    Raises:
        UserError: If the source cannot be read, or nothing in it fits the network.
    """
    state, ours = _state_dict(source), network.state_dict()
    if isinstance(network, models.SegResMamba):
        state = models.with_our_names(state, ours)
    stems = {  # convolutions that read the image; a transposed one may be the head
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv3d) and module.in_channels == in_channels
    }
    taken, adapted, fresh = dict[str, Tensor](), dict[str, Tensor](), list[str]()
    for name, own in ours.items():
        given = state.get(name)
        if given is None:
            fresh.append(f"{name} (not in the file)")
        elif given.shape == own.shape:
            taken[name] = given
        elif name in stems and _without_channels(given) == _without_channels(own):
            adapted[name] = _for_channels(given, in_channels)
        else:
            fresh.append(f"{name} ({_shape(given)} in the file, {_shape(own)} here)")
    if not taken:
        raise ConfigError(
            "no weight fits the network",
            where="train.init_from",
            got=f"{source} with {len(state)} weights such as {', '.join(list(state)[:3])}",
            remedy=f"give weights of the same network, with names such as {next(iter(ours))}, and "
            "the same settings of the model group",
        )
    network.load_state_dict(ours | taken | adapted)
    return StartingWeights(
        str(source),
        tuple(taken),
        tuple(f"{name} ({_shape(state[name])} to {_shape(ours[name])})" for name in adapted),
        tuple(fresh),
        tuple(name for name in state if name not in ours),
    )


def _without_channels(weight: Tensor) -> tuple[int, ...]:
    """The shape of a convolution's weight without its second axis, that of the input channels."""
    return (*weight.shape[:1], *weight.shape[2:])


def _for_channels(given: Tensor, channels: int) -> Tensor:
    """The mean over the old input channels for each new one, with the same sum over channels."""
    mean = given.mean(1, keepdim=True) * (given.shape[1] / channels)
    return mean.expand(-1, channels, *given.shape[2:])


def _state_dict(source: Path) -> dict[str, Tensor]:
    """The tensors of a run's best weights, or of a file.

    Raises:
        UserError: If there are none, they are damaged, or not finite.
    """
    file = _file(source)
    try:
        if weights_file.is_safetensors(file):
            content: Any = load_file(file)
            is_ours = weights_file.has_facts(file)
        else:
            content = torch.load(file, "cpu", weights_only=True)
            is_ours = isinstance(content, dict) and {"weights", "digests"} <= content.keys()
    except Exception as error:  # the libraries raise whatever the bytes provoke
        raise _unreadable(file, reading_problem(error)) from error
    if is_ours:
        return read_weights(file)[0]
    nested = [content.get(key) for key in _NESTED] if isinstance(content, dict) else []
    for candidate in (content, *nested):
        tensors = _tensors(candidate)
        if tensors:
            if broken := first_not_finite(tensors.items()):
                raise _unreadable(file, f"{broken} has nan or inf")
            return tensors
    raise _unreadable(file, "no state dict")


def _file(source: Path) -> Path:
    if not source.is_dir():
        return source
    members = sorted(source.glob("weights-*.safetensors"))  # of a model folder
    if len(members) > 1:
        raise _unreadable(source, f"{len(members)} models; name one, such as {members[0]}")
    places = [RunFolder(source).best, best_weights(source), *members]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise _unreadable(source, f"a folder without {places[0].relative_to(source)}")
    return found


def _tensors(candidate: Any) -> dict[str, Tensor]:
    if not isinstance(candidate, Mapping):
        return {}
    return {
        str(name).removeprefix(_WRAPPER): value
        for name, value in candidate.items()
        if isinstance(value, Tensor)
    }


def _unreadable(where: Path, got: str) -> ConfigError:
    return ConfigError(
        "the weights to start from cannot be read",
        where="train.init_from",
        got=f"{where}: {got}",
        remedy="name a run that has finished a validation, a model folder, or a file with a state "
        "dict: safetensors, or what torch.save has written",
    )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
