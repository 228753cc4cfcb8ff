"""The memory of one training step, counted on fake tensors, without computing or allocating."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from segresmamba.config import Config
from segresmamba.ops.workspace import workspace_bytes
from segresmamba.planner.cuda_autocast import CudaAutocastLists, backward
from segresmamba.planner.footprint import SavedBytes, make_fake
from segresmamba.planner.timeline import Timeline
from segresmamba.task.classes import Classes
from segresmamba.task.losses import build_loss
from segresmamba.task.precision import Autocast
from segresmamba.task.task import build_network, freeze


@dataclass(frozen=True)
class Activations:
    """Memory of a forward and backward pass besides weights, gradients and optimizer state."""

    weights_bytes: int
    trained_bytes: int
    """The part of the weights that `train.freeze` leaves to be trained."""
    saved_bytes: int
    """Kept by the network's forward pass for the backward pass, see `footprint.SavedBytes`."""
    peak_bytes: int
    """The most in use at once, with the batch, the loss and temporary results."""


def simulate(
    config: Config,
    channels: int,
    labels: Mapping[str, int],
    micro_batch: int,
    device_type: Literal["cpu", "cuda"],
) -> Activations:
    """Follow the memory of one forward pass, loss and backward pass.

    Args:
        config: Network, its frozen parts, patch, precision and classes.
        channels: Number of channels of the input.
        labels: Name to value of the dataset's labels.
        micro_batch: Number of crops.
        device_type: The device whose autocast list applies. For "cuda" the scans take what the
            triton backend takes (`segresmamba.ops.workspace`); the CPU's temporaries are not seen.

    Raises:
        ConfigError: If the network cannot be built with these settings.
    """
    classes = Classes.from_labels(config, labels)
    network = build_network(config, channels, classes.channels).train()
    freeze(network, config.train.freeze)
    weights_bytes = sum(weight.nbytes for weight in network.parameters())
    trained_bytes = sum(weight.nbytes for weight in network.parameters() if weight.requires_grad)
    loss_bytes = _loss_bytes_per_logit(config, labels, classes)
    mode = FakeTensorMode()
    make_fake(network, mode)
    on_cuda = device_type == "cuda"
    lists = CudaAutocastLists() if on_cuda else nullcontext()
    size = config.data.patch
    with mode, lists, Timeline(workspace_bytes if on_cuda else None) as timeline:
        x_BCDHW = torch.empty(micro_batch, channels, *size)
        label_BDHW = torch.empty(micro_batch, *size, dtype=torch.uint8)
        weights = [*network.parameters(), *network.buffers()]
        with SavedBytes([*weights, x_BCDHW]) as saved:
            outputs: Tensor | list[Tensor] = Autocast(network, config.train.precision)(x_BCDHW)
        levels = [outputs] if isinstance(outputs, Tensor) else outputs
        timeline.add_transient(sum(math.ceil(level.numel() * loss_bytes) for level in levels))
        backward(levels, [torch.empty_like(level) for level in levels])
        del outputs, levels
        # `states` counts the gradients.
        timeline.leave_out(p.grad for p in network.parameters() if p.grad is not None)
    del label_BDHW
    return Activations(weights_bytes, trained_bytes, saved.total, timeline.peak_bytes())


def count_outputs(config: Config, channels: int, classes: int) -> int:
    """How many outputs the network has in training; more than one with deep supervision.

    Args:
        config: Network and patch.
        channels: Number of channels of the input.
        classes: Number of channels of an output.

    Raises:
        ConfigError: If the network cannot be built with these settings.
    """
    network = build_network(config, channels, classes).train()
    mode = FakeTensorMode()
    make_fake(network, mode)
    with mode, torch.no_grad():
        outputs = network(torch.empty(1, channels, *config.data.patch))
    return 1 if isinstance(outputs, Tensor) else len(outputs)


def _loss_bytes_per_logit(config: Config, labels: Mapping[str, int], classes: Classes) -> float:
    """Peak memory of the loss for each logit, measured on real tensors of a small size.

    MONAI's Dice reads a tensor's values, and fake tensors have none. The peak is proportional to
    the number of logits.
    """
    size = (16, 16, 16)
    logits_BKDHW = torch.zeros(1, classes.channels, *size, requires_grad=True)
    label_BDHW = torch.zeros(1, *size, dtype=torch.uint8)
    loss = build_loss(config, labels)
    with Timeline() as timeline:
        loss(logits_BKDHW, label_BDHW).backward()
    return float(timeline.peak_bytes() / logits_BKDHW.numel())
