"""From a configuration and a dataset to a network and a split."""

from __future__ import annotations

import torch
from torch import nn

from segresmamba import data, models
from segresmamba.config import Config
from segresmamba.engine.classes import Classes
from segresmamba.errors import ConfigError


def build_network(config: Config, dataset: data.Dataset, classes: Classes) -> nn.Module:
    """The configured network for a dataset, with weights that depend on the seed alone.

    Raises:
        ConfigError: If the model's settings do not fit together.
    """
    random_state = torch.get_rng_state()
    torch.manual_seed(config.seed)
    try:
        return models.build(
            config.model.name,
            in_channels=len(dataset.channel_names),
            out_channels=classes.channels,
            **config.model.model_dump(exclude={"name"}),
        )
    except ValueError as error:
        raise ConfigError(
            "the network cannot be built",
            where="model",
            got=config.model.model_dump(),
            remedy=str(error),
        ) from error
    finally:
        torch.set_rng_state(random_state)


def split_of(config: Config, dataset: data.Dataset) -> dict[str, list[str]]:
    """The training and held-out cases of the configured fold.

    Raises:
        ConfigError: If the store has no such fold.
    """
    if config.train.fold >= len(dataset.splits):
        raise ConfigError(
            "the store has no such fold",
            where="train.fold",
            got=config.train.fold,
            remedy=f"choose 0 to {len(dataset.splits) - 1}",
        )
    split: dict[str, list[str]] = dataset.splits[config.train.fold]
    return split
