"""What a run works on: a dataset, its split, the classes, and a network for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from segresmamba import data, models
from segresmamba.config import Config
from segresmamba.engine.classes import Classes
from segresmamba.errors import ConfigError


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
        model = self.config.model
        random_state = torch.get_rng_state()
        torch.manual_seed(self.config.seed)
        try:
            return models.build(
                model.name,
                in_channels=len(self.dataset.channel_names),
                out_channels=self.classes.channels,
                **model.model_dump(exclude={"name"}),
            )
        except ValueError as error:
            raise ConfigError(
                "the network cannot be built", where="model", got=model, remedy=str(error)
            ) from error
        finally:
            torch.set_rng_state(random_state)


def _split(config: Config, dataset: data.Dataset) -> Mapping[str, Sequence[str]]:
    if config.train.fold >= len(dataset.splits):
        raise ConfigError(
            "the store has no such fold",
            where="train.fold",
            got=config.train.fold,
            remedy=f"choose 0 to {len(dataset.splits) - 1}",
        )
    split: Mapping[str, Sequence[str]] = dataset.splits[config.train.fold]
    return split
