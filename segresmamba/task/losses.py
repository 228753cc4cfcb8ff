"""Dice plus cross-entropy, for exclusive labels and for overlapping regions.

Dice is computed for each sample and then averaged. The Dice of a whole batch is not a mean over its
samples, so with it gradient accumulation, or more ranks, would train something else than one large
batch does. nnU-Net's 3D full-resolution configuration makes the same choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segresmamba.config import Config
from segresmamba.task.classes import Classes

_SMOOTH = 1e-5


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
    """Dice loss plus cross-entropy, each with weight 1, in fp32 at every precision of the logits.

    Exclusive labels: softmax Dice over the foreground plus cross-entropy over all channels, as in
    nnU-Net. The background of a crop is nearly always right and would only dilute the mean Dice.
    Regions: sigmoid Dice with squared predictions, as in the SegResMamba paper, plus binary
    cross-entropy.

    A class that is not in a crop adds a Dice loss near 1 and almost no gradient; its cross-entropy
    still lowers its logits. The smoothing of 1e-5 keeps the quotient finite.

    Args:
        classes: What the channels of the logits mean.
    """

    def __init__(self, classes: Classes) -> None:
        super().__init__()
        self.classes = classes

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
        weights = [0.5**level for level in range(len(levels))]  # nnU-Net's
        losses = []
        for weight, logits_BKDHW in zip(weights, levels, strict=True):
            target = self.classes.encode(resize_label(label_BDHW, logits_BKDHW.shape[2:]))
            logits = logits_BKDHW.float()
            if self.classes.exclusive:
                cross_entropy = F.cross_entropy(logits, target)
                mask = torch.zeros_like(logits).scatter_(1, target[:, None], 1)
                dice = _dice_loss(logits.softmax(1)[:, 1:], mask[:, 1:])
            else:
                cross_entropy = F.binary_cross_entropy_with_logits(logits, target)
                dice = _dice_loss(logits.sigmoid(), target, squared=True)
            losses.append(weight * (dice + cross_entropy))
        return torch.stack(losses).sum() / sum(weights)


def _dice_loss(predicted_BKDHW: Tensor, target_BKDHW: Tensor, *, squared: bool = False) -> Tensor:
    """1 - Dice of probabilities against masks of 0 and 1, averaged over samples and channels."""
    axes = (2, 3, 4)
    overlap_BK = (predicted_BKDHW * target_BKDHW).sum(axes)
    measured_BKDHW = predicted_BKDHW.square() if squared else predicted_BKDHW
    sizes_BK = measured_BKDHW.sum(axes) + target_BKDHW.sum(axes)
    return (1 - (2 * overlap_BK + _SMOOTH) / (sizes_BK + _SMOOTH)).mean()


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
