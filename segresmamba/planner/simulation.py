"""One training step on fake tensors: nothing is computed or allocated, everything is counted."""

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
from segresmamba.planner.cuda_autocast import CudaAutocastLists, backward
from segresmamba.planner.footprint import SavedBytes, make_fake
from segresmamba.planner.timeline import Timeline
from segresmamba.task.classes import Classes
from segresmamba.task.losses import build_loss
from segresmamba.task.precision import Autocast
from segresmamba.task.task import build_network


@dataclass(frozen=True)
class Activations:
    """What one backward pass of a network needs besides weights, gradients and optimizer."""

    weights_bytes: int
    saved_bytes: int
    """Kept by the network's forward pass for the backward pass, see `measure.SavedBytes`."""
    peak_bytes: int
    """The most in use at once, batch, loss and temporary results included."""


def simulate(
    config: Config,
    channels: int,
    labels: Mapping[str, int],
    micro_batch: int,
    device_type: Literal["cpu", "cuda"],
) -> Activations:
    """Follow the memory of one forward pass, loss and backward pass.

    Args:
        config: Network, patch, precision and classes.
        channels: Of the input.
        labels: Name to value of the dataset's labels.
        micro_batch: Crops.
        device_type: Whose autocast lists apply.

    Raises:
        ConfigError: If the network cannot be built so.
    """
    classes = Classes.from_labels(config, labels)
    network = build_network(config, channels, classes.channels).train()
    weights_bytes = sum(parameter.nbytes for parameter in network.parameters())
    loss_bytes = _loss_bytes_per_logit(config, labels, classes)
    mode = FakeTensorMode()
    make_fake(network, mode)
    lists = CudaAutocastLists() if device_type == "cuda" else nullcontext()
    size = config.data.patch
    with mode, lists, Timeline() as timeline:
        x_BCDHW = torch.empty(micro_batch, channels, *size)
        label_BDHW = torch.empty(micro_batch, *size, dtype=torch.uint8)
        weights = [*network.parameters(), *network.buffers()]
        with SavedBytes([*weights, x_BCDHW]) as saved:
            outputs: Tensor | list[Tensor] = Autocast(network, config.train.precision)(x_BCDHW)
        levels = [outputs] if isinstance(outputs, Tensor) else outputs
        timeline.aside(sum(math.ceil(level.numel() * loss_bytes) for level in levels))
        backward(levels, [torch.empty_like(level) for level in levels])
        del outputs, levels
        # `states` has those.
        timeline.leave_out(p.grad for p in network.parameters() if p.grad is not None)
    del label_BDHW
    return Activations(weights_bytes, saved.total, timeline.peak_bytes())


def _loss_bytes_per_logit(config: Config, labels: Mapping[str, int], classes: Classes) -> float:
    """The loss's peak, which grows with the logits, measured on few real ones.

    MONAI's Dice reads a tensor's values, and fake tensors have none.
    """
    size = (16, 16, 16)
    logits_BKDHW = torch.zeros(1, classes.channels, *size, requires_grad=True)
    label_BDHW = torch.zeros(1, *size, dtype=torch.uint8)
    loss = build_loss(config, labels)
    with Timeline() as timeline:
        loss(logits_BKDHW, label_BDHW).backward()
    return float(timeline.peak_bytes() / logits_BKDHW.numel())
