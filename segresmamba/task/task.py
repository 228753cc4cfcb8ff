"""What a run trains: a dataset, its split, the classes, and a network for them.

A configuration that cannot be trained is refused here, before its run folder is made.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from segresmamba import data, models
from segresmamba.config import Config
from segresmamba.errors import BackendMissingError, ConfigError, DataError
from segresmamba.task.classes import Classes
from segresmamba.task.losses import SegmentationLoss, class_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A configuration's segmentation task. Making one writes nothing."""

    config: Config
    dataset: data.Dataset
    split: Mapping[str, Sequence[str]]
    """Case ids to train on ("train") and held out ("val")."""
    classes: Classes

    @classmethod
    def from_config(cls, config: Config) -> Task:
        """Open the dataset and check that the configuration fits it.

        Raises:
            UserError: For a missing store, or a fold or label that it lacks.
        """
        dataset = data.open_dataset(config.data.store, patience_s=config.data.patience_s)
        split = _split(config, dataset)
        data.PatchSampler(  # refuses a fold without training cases
            dataset,
            split["train"],
            config.data.patch,
            config.seed,
            config.data.foreground_fraction,
        )
        crops = len(split["train"]) * config.data.crops_per_case
        train = config.train.with_steps(crops)
        if train.epochs is not None:
            logger.info(
                "train.epochs=%d is train.max_steps=%d: an epoch has %d crops, a step %d of them",
                *(train.epochs, train.max_steps, crops, train.batch_size),
            )
        config = config.model_copy(update={"train": train})
        classes = Classes.from_labels(config, dataset.labels)
        class_weights(classes, config.loss.class_weights)  # refuses unknown classes
        return cls(config, dataset, split, classes)

    def loss(self) -> SegmentationLoss:
        """The loss that the configuration trains with. Says so if crops will be padded.

        Raises:
            ConfigError: If it is one of another package that does not work.
        """
        cases, patch = self.split["train"], self.config.data.patch
        smaller = self.dataset.smaller_than(patch, cases)
        if smaller:
            logger.info(
                "%d of %d training cases, %s among them, are smaller than data.patch=%s: their "
                "crops repeat the border of the case, which the loss leaves out",
                *(len(smaller), len(cases), smaller[0], str(list(patch)).replace(" ", "")),
            )
        ignores = self.dataset.manifest.storage.ignore_value is not None
        return SegmentationLoss(self.classes, self.config.loss, padded=bool(smaller) or ignores)

    def staged(self) -> Task:
        """The task with its cases copied to this node, if data.stage asks for it.

        Raises:
            UserError: See `data.stage`.
        """
        folder = self.config.data.stage
        if folder is None:
            return self
        case_ids = sorted(set(self.split["train"]) | set(self.split["val"]))
        return replace(self, dataset=data.stage(self.dataset, case_ids, folder))

    def network(self) -> nn.Module:
        """A new network, with weights that depend on the seed alone, frozen as configured.

        Raises:
            ConfigError: See `build_network` and `freeze`; also if a compiler is needed and there is
                none.
        """
        compiler = os.environ.get("CXX", "g++")  # the one that torch.compile calls
        if self.config.train.compile and shutil.which(compiler) is None:
            raise ConfigError(
                "compiling the network needs a C++ compiler",
                where="train.compile",
                got=f"true, without {compiler}",
                remedy="install g++, name another compiler in CXX, or give train.compile=false",
            )
        channels = len(self.dataset.channel_names)
        network = build_network(self.config, channels, self.classes.channels)
        freeze(network, self.config.train.freeze)
        return network


def _split(config: Config, dataset: data.Dataset) -> Mapping[str, Sequence[str]]:
    """Case ids to train on ("train") and held out ("val").

    Raises:
        UserError: For a fold that the store lacks.
    """
    fold = config.train.fold
    if fold is None:
        return {"train": dataset.case_ids, "val": ()}
    if not dataset.splits:
        raise DataError(
            "there is nothing to hold out: the dataset has a single case",
            where=config.data.store,
            got=f"{len(dataset.case_ids)} cases",
            remedy="convert at least two cases, or set train.fold=none to train on this one",
        )
    if fold >= len(dataset.splits):
        raise ConfigError(
            "the store has no such fold",
            where="train.fold",
            got=fold,
            remedy=f"choose 0 to {len(dataset.splits) - 1}, or none to train on all cases; "
            "`python -m launch train train.fold=all` trains a run for each fold",
        )
    return dataset.splits[fold]


def build_network(config: Config, in_channels: int, out_channels: int) -> nn.Module:
    """The configured network, with weights that depend on the seed alone.

    Raises:
        ConfigError: If the model's settings do not fit together or with the patch; names the key.
        BackendMissingError: If the network's library is not installed.
    """
    # The caller's random state stays as it is. A network is built on the CPU, and the generators of
    # GPUs, which `torch.manual_seed` would seed too, are left alone.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        try:
            network = models.build(
                config.model.name,
                in_channels=in_channels,
                out_channels=out_channels,
                patch=config.data.patch,
                **config.model.model_dump(exclude={"name"}),
            )
        except models.ArgumentError as error:
            raise ConfigError(
                f"{config.model.name} cannot be built or trained like this",
                where="data.patch" if error.name == "patch" else f"model.{error.name}",
                got=error.got,
                remedy=f"{error.name} {error.rule}",
            ) from error
    if config.train.channels_last:
        keep_channels_last(network)
    return network


def freeze(network: nn.Module, parts: Sequence[str]) -> None:
    """Exclude weights from training: those whose name begins with one of `parts`.

    Raises:
        ConfigError: If a part names no weight, or if no weight is left to train.
    """
    weights = dict(network.named_parameters())
    for part in parts:
        frozen = [name for name in weights if f"{name}.".startswith(f"{part}.")]
        if not frozen:
            raise ConfigError(
                "the network has no such part",
                where="train.freeze",
                got=part,
                remedy=f"choose among {', '.join(name for name, _ in network.named_children())}, "
                "or a part of one, such as blocks.0",
            )
        for name in frozen:
            weights[name].requires_grad_(False)
    if not any(weight.requires_grad for weight in weights.values()):
        raise ConfigError(
            "nothing is left to train",
            where="train.freeze",
            got=list(parts),
            remedy="freeze fewer parts of the network",
        )


def keep_channels_last(network: nn.Module) -> list[RemovableHandle]:
    """Give convolutions their input with the channels of a voxel side by side, until removed.

    Weights in that layout would do the same, but DeepSpeed cannot take them, and ZeRO changes their
    layout.
    """

    def rearranged(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].contiguous(memory_format=torch.channels_last_3d), *inputs[1:])

    return [
        module.register_forward_pre_hook(rearranged)
        for module in network.modules()
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d)
    ]


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
