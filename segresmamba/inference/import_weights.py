"""Weights of others for a network that exists here, as a model folder.

The file has weights alone. What they mean comes from a configuration: the network's settings, and a
store with the channels, labels and preprocessing that they were trained for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from segresmamba import models
from segresmamba.config import Config
from segresmamba.errors import CheckpointError, ConfigError
from segresmamba.inference.export import (
    NO_LICENCE,
    Origin,
    refuse_used,
    scratch_beside,
    write_model_folder,
)
from segresmamba.inference.trained import TrainedModel
from segresmamba.models.padding import Padded
from segresmamba.models.segmamba import SegMamba
from segresmamba.models.state_dicts import refuse_differences
from segresmamba.task.classes import Classes
from segresmamba.task.starting_weights import read_state_dict
from segresmamba.task.task import Task, build_network
from segresmamba.task.weights import WeightsFacts, save_weights

logger = logging.getLogger(__name__)

_THEIRS = "vit."  # names of the released SegResMamba and of the official SegMamba begin so


def import_weights(source: Path, out: Path, config: Config, *, licence: str = NO_LICENCE) -> Path:
    """Write a model folder with the weights of a file.

    Args:
        source: A file with a state dict: of a network as it is built here or in its library, of
            the released SegResMamba, or of the official SegMamba. A folder of a MONAI bundle
            stands for its models/model.pt.
        out: The folder to write. It must not exist, or be empty.
        config: Settings of the network, the patch, and a store.
        licence: Licence of the weights, such as CC-BY-4.0.

    Returns:
        `out`.

    Raises:
        UserError: If the file cannot be read, or does not have all weights of the network; if `out`
            has files or cannot be written.
    """
    refuse_used(out)
    file = source / "models" / "model.pt" if source.is_dir() else source
    dataset = Task.from_config(config).dataset
    facts = WeightsFacts(
        step=0,
        dice=None,
        labels=dataset.labels,
        channel_names=dataset.channel_names,
        preprocessing=dataset.preprocessing,
    )
    return import_state(file, out, config, facts, source.name, licence)


def import_state(
    file: Path, out: Path, config: Config, facts: WeightsFacts, name: str, licence: str
) -> Path:
    """Write a model folder with the weights of a file, of which all is known.

    Args:
        file: A file with a state dict, see `import_weights`.
        out: The folder to write.
        config: Settings of the network and the patch.
        facts: Its channels, labels and preprocessing.
        name: What it is called in the model folder.
        licence: Licence of the weights.

    Raises:
        UserError: As `import_weights`.
    """
    classes = Classes.from_labels(config, facts.labels)
    network = build_network(config, len(facts.channel_names), classes.channels)
    try:
        state, _ = read_state_dict(file)
    except ConfigError as error:
        remedy = "name a file with a state dict: safetensors, or what torch.save has written"
        raise ConfigError(error.problem, where=file, got=error.got, remedy=remedy) from error
    try:
        _load(network, state)
    except ValueError as error:
        raise CheckpointError(
            f"these are not the weights of {config.model.name} with these settings",
            where=file,
            got=error,
            remedy="give the settings of the model group that they were trained with",
        ) from error
    with scratch_beside(out) as scratch:
        weights = scratch / "0.safetensors"
        save_weights(weights, network.state_dict(), facts)
        model = TrainedModel(weights, config, facts)
        return write_model_folder(out, [model], [Origin(name)], {}, licence)


def _load(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load all weights of a network.

    Raises:
        ValueError: If some are missing, or have other shapes.
    """
    is_theirs = any(name.startswith(_THEIRS) for name in state)
    if is_theirs and isinstance(network, SegMamba):
        models.load_official_segmamba_state_dict(network, state)
    elif is_theirs and isinstance(network, models.SegResMamba):
        models.load_released_state_dict(network, state)
    else:
        # Networks of libraries are wrapped here, which their own names do not tell.
        is_bare = isinstance(network, Padded) and not any(n.startswith("network.") for n in state)
        renamed = {f"network.{name}": value for name, value in state.items()} if is_bare else state
        shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        refuse_differences(shapes, renamed, type(network).__name__)
        network.load_state_dict(dict(renamed))
