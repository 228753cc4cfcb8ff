"""Weights that a new run starts from, `train.init_from`: of a run, of a file, or released ones.

What fits by name and shape is taken. A layer that differs only in the number of input channels is
adapted, everything else of the network starts fresh, and both are named. So does a head of equal
size for other classes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor, nn

from segresmamba import models
from segresmamba.config import read_config
from segresmamba.errors import ConfigError, UserError
from segresmamba.storage.atomic import write_text
from segresmamba.storage.run_folder import RunFolder, best_weights
from segresmamba.task import weights_file
from segresmamba.task.classes import Classes
from segresmamba.task.task import Task, build_network
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
            return _recorded(run.init_from, task, network)
    found = load_starting_weights(source, network, len(task.dataset.channel_names), task)
    if not resumes:
        logger.info("starting from %s", found)
    return found


def _recorded(record: Path, task: Task, network: nn.Module) -> StartingWeights:
    """The record of a run that goes on. A damaged one is made anew from the source."""
    try:
        return _RECORD.validate_json(record.read_bytes())
    except (OSError, ValueError) as damage:
        why = type(damage).__name__
        logger.warning("%s is damaged (%s): it is made anew from the source", record, why)
        source, channels = task.config.train.init_from, len(task.dataset.channel_names)
        assert source is not None  # there would be no record
        try:
            return load_starting_weights(source, network, channels, task)
        except UserError as missing:
            raise ConfigError(
                "the record of the weights that the run started from is damaged, and so is their "
                "source",
                where=record,
                got=f"{why}; {missing.got}",
                remedy="bring back one of the two: the record says which weights have the lower "
                "learning rate",
            ) from missing


_RECORD = TypeAdapter(StartingWeights)


def load_starting_weights(
    source: Path, network: nn.Module, in_channels: int, task: Task | None = None
) -> StartingWeights:
    """Load what fits into a network, which stays as it is if nothing does.

    Args:
        source: A run's folder, or a file.
        network: The network.
        in_channels: Channels of its input.
        task: What the network is for. If it and the source's classes are known, a head for other
            classes is left out.

    Raises:
        UserError: If the source cannot be read, or nothing in it fits the network.
    """
    file = find_weights(source)
    (state, labels), ours = read_state_dict(file), network.state_dict()
    other_classes = _weights_of_other_classes(file, labels, task) if task and labels else {}
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
        elif name in other_classes:
            fresh.append(f"{name} ({other_classes[name]})")
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


def _weights_of_other_classes(file: Path, labels: Mapping[str, int], task: Task) -> dict[str, str]:
    """The weights of a head that was trained for other classes, each with the reason.

    Classes that differ only in capitals and separators are taken for the same, with a warning.
    """
    # Regions are in the configuration of the file's run or model folder.
    in_model_folder = file.with_name(file.name.replace("weights-", "config-")).with_suffix(".yaml")
    beside = RunFolder(file.absolute().parents[1]).config
    path = in_model_folder if in_model_folder.exists() else beside
    try:
        regions = read_config(path).data.regions if path.exists() else None
    except ConfigError:  # of another version
        regions = None
    data = task.config.data.model_copy(update={"regions": regions})
    config = task.config.model_copy(update={"data": data})
    theirs, ours = Classes.from_labels(config, labels).channel_names, task.classes.channel_names
    if theirs == ours or len(theirs) != len(ours):  # another size is seen anyway
        return {}
    both = f"classes {', '.join(theirs)} in the file, {', '.join(ours)} here"
    if _plain(theirs) == _plain(ours):
        logger.warning("train.init_from: the head is taken, although its names differ: %s", both)
        return {}
    channels = len(task.dataset.channel_names)
    one, more = (
        build_network(task.config, channels, len(ours) + extra).state_dict() for extra in (0, 1)
    )
    return {name: both for name in one if one[name].shape != more[name].shape}


def _plain(names: Sequence[str]) -> list[str]:
    return ["".join(filter(str.isalnum, name.casefold())) for name in names]


def read_state_dict(file: Path) -> tuple[dict[str, Tensor], Mapping[str, int]]:
    """The tensors of a run's best weights, or of another file, and the labels if it has them.

    Raises:
        UserError: If there are none, they are damaged, or not finite.
    """
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
        weights, facts = read_weights(file)
        return weights, facts.labels
    nested = [content.get(key) for key in _NESTED] if isinstance(content, dict) else []
    for candidate in (content, *nested):
        if not isinstance(candidate, Mapping):
            continue
        tensors = {
            str(name).removeprefix(_WRAPPER): value
            for name, value in candidate.items()
            if isinstance(value, Tensor)
        }
        if tensors:
            if broken := first_not_finite(tensors.items()):
                raise _unreadable(file, f"{broken} has nan or inf")
            return tensors, {}
    raise _unreadable(file, "no state dict")


def find_weights(source: Path) -> Path:
    """The file of the weights in a run, a model folder or an export; a file is taken as it is.

    Raises:
        ConfigError: If there is none, or the folder has several.
    """
    if not source.exists():
        raise _unreadable(source, "no such file or folder")
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
