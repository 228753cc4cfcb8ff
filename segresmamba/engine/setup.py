"""What a run works on: a dataset, its split, the classes, and a network for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from segresmamba import data, models
from segresmamba.config import Config
from segresmamba.engine.classes import Classes
from segresmamba.errors import BackendMissingError, ConfigError, DataError


@dataclass(frozen=True)
class Task:
    """A configuration's segmentation task. Nothing is written to find it out."""

    config: Config
    dataset: data.Dataset
    split: Mapping[str, Sequence[str]]
    """Case ids to train on ("train") and held out ("val")."""
    classes: Classes

    @classmethod
    def of(cls, config: Config) -> Task:
        """Open the dataset and see that the configuration fits it.

        Raises:
            UserError: For a missing store, a fold or label that it lacks, a patch that its cases
                cannot hold.
        """
        dataset = data.open_dataset(config.data.store)
        split = _split(config, dataset)
        data.PatchSampler(
            dataset,
            split["train"],
            config.data.patch,
            config.seed,
            config.data.foreground_fraction,
            config.data.crops_per_case,
        )
        return cls(config, dataset, split, Classes.of(config, dataset.labels))

    def network(self) -> nn.Module:
        """A new network, with weights that depend on the seed alone.

        Raises:
            ConfigError: If the model's settings do not fit together.
        """
        return build_network(self.config, len(self.dataset.channel_names), self.classes.channels)


def build_network(config: Config, in_channels: int, out_channels: int) -> nn.Module:
    """The configured network, with weights that depend on the seed alone.

    Raises:
        ConfigError: If the model's settings do not fit together.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        try:
            return models.build(
                config.model.name,
                in_channels=in_channels,
                out_channels=out_channels,
                **config.model.model_dump(exclude={"name"}),
            )
        except ValueError as error:
            raise ConfigError(
                "the network cannot be built", where="model", got=config.model, remedy=str(error)
            ) from error


def scan_backend(config: Config, network: nn.Module, device: torch.device) -> str:
    """The scan implementation that a network will run, see `models.scan_backend`.

    Raises:
        ConfigError: If the one asked for does not run on this device.
        BackendMissingError: If the one asked for is not installed.
    """
    try:
        return models.scan_backend(network, device)
    except BackendMissingError:
        raise
    except ValueError as error:
        raise ConfigError(
            "the scan backend does not run here",
            where="model.scan_backend",
            got=f"{config.model.model_dump().get('scan_backend')} on {device.type}",
            remedy=str(error),
        ) from error


def _split(config: Config, dataset: data.Dataset) -> Mapping[str, Sequence[str]]:
    if not dataset.splits:
        raise DataError(
            "there is nothing to hold out: the dataset has a single case",
            where=config.data.store,
            got=f"{len(dataset.case_ids)} cases",
            remedy="convert at least two cases",
        )
    if config.train.fold >= len(dataset.splits):
        raise ConfigError(
            "the store has no such fold",
            where="train.fold",
            got=config.train.fold,
            remedy=f"choose 0 to {len(dataset.splits) - 1}",
        )
    split: Mapping[str, Sequence[str]] = dataset.splits[config.train.fold]
    return split
