"""The loss of a batch, for exclusive labels and for overlapping regions.

Dice is computed for each sample and then averaged. The Dice of a whole batch is not a mean over its
samples, so with it gradient accumulation, or more ranks, would train something else than one large
batch does. nnU-Net's 3D full-resolution configuration makes the same choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segresmamba.config import Config, LossConfig
from segresmamba.errors import ConfigError
from segresmamba.task.classes import Classes
from segresmamba.task.loss_terms import Level, terms


def build_loss(config: Config, labels: Mapping[str, int]) -> SegmentationLoss:
    """The loss that a configuration trains with.

    Args:
        config: The run's configuration; `data.regions` chooses sigmoids over a softmax.
        labels: Name to value of each label of the dataset.

    Raises:
        ConfigError: If a region holds a label value that the dataset does not declare, or a weight
            is that of an unknown class.
        DataError: If the dataset declares no label besides the background.
    """
    return SegmentationLoss(Classes.from_labels(config, labels), config.loss)


class SegmentationLoss(nn.Module):
    """The configured terms, in fp32 at every precision of the logits.

    The default is Dice plus cross-entropy, each with weight 1. Exclusive labels: softmax Dice over
    the foreground plus cross-entropy over all channels, as in nnU-Net. The background of a crop is
    nearly always right and would only dilute the mean Dice. Regions: sigmoid Dice with squared
    predictions, as in the SegResMamba paper, plus binary cross-entropy.

    A class that is not in a crop adds a Dice loss near 1 and almost no gradient; its cross-entropy
    still lowers its logits. The smoothing of 1e-5 keeps the quotient finite.

    Args:
        classes: What the channels of the logits mean.
        config: The terms and their weights.
        padded: Whether labels may hold negative values, which mark voxels that count for nothing.

    Raises:
        ConfigError: If a weight is that of an unknown class, or `loss.target` does not work.
    """

    def __init__(
        self, classes: Classes, config: LossConfig | None = None, *, padded: bool = False
    ) -> None:
        super().__init__()
        config = config or LossConfig()
        self.classes, self.padded = classes, padded
        self.step = 0
        """Step of the training, for terms with a warm-up."""
        self._levels = config.deep_supervision
        self._terms = terms(config, classes.channels, exclusive=classes.exclusive, padded=padded)
        self._weights_K = class_weights(classes, config.class_weights)

    def forward(self, outputs: Tensor | Sequence[Tensor], label_BDHW: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            outputs: Logits (B, K, D, H, W); under deep supervision a list of them, full resolution
                first. Their weights, by default 1, 1/2, 1/4 ..., are divided by their sum.
            label_BDHW: Label values, any integer type, at full resolution.

        Returns:
            A scalar, float32.

        Raises:
            ConfigError: If there are more weights than outputs.
        """
        levels = [outputs] if isinstance(outputs, Tensor) else outputs
        weights = self.level_weights(len(levels))
        if self._weights_K is not None:  # a copy in the first step only
            self._weights_K = self._weights_K.to(levels[0].device)
        losses = []
        for weight, logits_BKDHW in zip(weights, levels, strict=True):
            if weight:
                label = resize_label(label_BDHW, logits_BKDHW.shape[2:])
                level = Level(
                    logits_BKDHW.float(),
                    self.classes.encode(label),
                    (label >= 0)[:, None] if self.padded else None,
                    self._weights_K,
                    exclusive=self.classes.exclusive,
                )
                terms = torch.stack([term(level, self.step) for term in self._terms])
                losses.append(weight * terms.sum())
        return torch.stack(losses).sum() / sum(weights)

    def level_weights(self, count: int) -> list[float]:
        """The weight of each output of the network, full resolution first.

        Raises:
            ConfigError: If there are more weights than outputs.
        """
        if self._levels is None:
            return [0.5**level for level in range(count)]  # nnU-Net's
        if len(self._levels) > count:
            raise ConfigError(
                "there are more weights than outputs of the network",
                where="loss.deep_supervision",
                got=f"{list(self._levels)}, and the network has {count} output(s)",
                remedy=f"give at most {count} weight(s), or a network with deep supervision",
            )
        return [*self._levels, *[0.0] * (count - len(self._levels))]


def class_weights(classes: Classes, weights: Mapping[str, float] | None) -> Tensor | None:
    """A weight for each channel of the logits; None if all are 1.

    Raises:
        ConfigError: If a weight is that of an unknown class, or all are 0.
    """
    if weights is None:
        return None
    names = classes.channel_names
    if unknown := sorted(weights.keys() - set(names)):
        raise ConfigError(
            "a weight is that of an unknown class",
            where="loss.class_weights",
            got=", ".join(unknown),
            remedy=f"choose among {', '.join(names)}",
        )
    weights_K = torch.tensor([float(weights.get(name, 1)) for name in names])
    if not weights_K.any():
        raise ConfigError(
            "no class would be trained",
            where="loss.class_weights",
            got=dict(weights),
            remedy="give at least one weight above 0",
        )
    return weights_K


def resize_label(label_BDHW: Tensor, size: Sequence[int]) -> Tensor:
    """Labels at another resolution, by the nearest voxel.

    Args:
        label_BDHW: Label values below 2^24, which float32 holds exactly.
        size: The wanted (D, H, W).
    """
    if label_BDHW.shape[1:] == torch.Size(size):
        return label_BDHW
    resized = F.interpolate(label_BDHW[:, None].float(), tuple(size), mode="nearest-exact")
    return resized[:, 0].to(label_BDHW.dtype)
