"""Dice plus cross-entropy, for exclusive labels and for overlapping regions.

Dice is taken per sample and then averaged. Taken over the whole batch instead, it would not be a
mean over samples, and gradient accumulation or more ranks would train something else than the
larger batch does. nnU-Net's 3D full-resolution configuration makes the same choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from monai.losses.dice import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from segresmamba.config import Config
from segresmamba.task.classes import Classes


def build_loss(config: Config, labels: Mapping[str, int]) -> SegmentationLoss:
    """The loss that a configuration trains with.

    Args:
        config: The run's configuration; `data.regions` chooses sigmoids over a softmax.
        labels: Name to value of each label of the dataset.

    Raises:
        ConfigError: If a region holds a label value that the dataset does not declare.
        DataError: If the dataset declares no label besides the background.
    """
    return SegmentationLoss(Classes.from_labels(config, labels))


class SegmentationLoss(nn.Module):
    """Dice loss plus cross-entropy, each with weight 1, in fp32 whatever the logits are.

    Exclusive labels: softmax Dice over the foreground (the background of a crop is nearly always
    right and would only dilute the mean) plus cross-entropy over all channels, as nnU-Net. Regions:
    sigmoid Dice with squared predictions, as the SegResMamba paper, plus binary cross-entropy.

    A class that a crop does not hold adds a Dice loss near 1 and next to no gradient; its
    cross-entropy still pushes it down. The smoothing of 1e-5 keeps the quotient finite.

    Args:
        classes: What the channels of the logits mean.
    """

    def __init__(self, classes: Classes) -> None:
        super().__init__()
        self.classes = classes
        self.dice = (
            DiceLoss(softmax=True, to_onehot_y=True, include_background=False)
            if classes.exclusive
            else DiceLoss(sigmoid=True, squared_pred=True)
        )

    def forward(self, outputs: Tensor | Sequence[Tensor], label_BDHW: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            outputs: Logits (B, K, D, H, W); under deep supervision a list of them, full resolution
                first, weighted 1, 1/2, 1/4 ... and divided by the sum of the weights.
            label_BDHW: Label values, any integer type, at full resolution.

        Returns:
            A scalar, float32.
        """
        levels = [outputs] if isinstance(outputs, Tensor) else outputs
        weights = [0.5**level for level in range(len(levels))]
        losses = [
            weight * self._level(logits, label_BDHW)
            for weight, logits in zip(weights, levels, strict=True)
        ]
        return torch.stack(losses).sum() / sum(weights)

    def _level(self, logits_BKDHW: Tensor, label_BDHW: Tensor) -> Tensor:
        target = self.classes.encode(resize_label(label_BDHW, logits_BKDHW.shape[2:]))
        logits = logits_BKDHW.float()
        if self.classes.exclusive:
            cross_entropy = F.cross_entropy(logits, target)
            target = target[:, None]
        else:
            cross_entropy = F.binary_cross_entropy_with_logits(logits, target)
        dice_loss: Tensor = self.dice(logits, target)
        return dice_loss + cross_entropy


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
