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
_IGNORE = -100  # what PyTorch's cross-entropy leaves out by default


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
        padded: Whether labels may hold negative values, which mark voxels that count for nothing.
    """

    def __init__(self, classes: Classes, *, padded: bool = False) -> None:
        super().__init__()
        self.classes, self.padded = classes, padded

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
            label = resize_label(label_BDHW, logits_BKDHW.shape[2:])
            losses.append(weight * self._level(logits_BKDHW.float(), label))
        return torch.stack(losses).sum() / sum(weights)

    def _level(self, logits_BKDHW: Tensor, label_BDHW: Tensor) -> Tensor:
        target = self.classes.encode(label_BDHW)
        counts_B1DHW = (label_BDHW >= 0)[:, None].float() if self.padded else None
        if self.classes.exclusive:
            chosen = target if counts_B1DHW is None else target.masked_fill(label_BDHW < 0, _IGNORE)
            cross_entropy = F.cross_entropy(logits_BKDHW, chosen, ignore_index=_IGNORE)
            masks_BKDHW = torch.zeros_like(logits_BKDHW).scatter_(1, target[:, None], 1)[:, 1:]
            predicted_BKDHW = logits_BKDHW.softmax(1)[:, 1:]
        else:
            cross_entropy = F.binary_cross_entropy_with_logits(logits_BKDHW, target, counts_B1DHW)
            if counts_B1DHW is not None:  # its mean is over all voxels
                cross_entropy = cross_entropy / counts_B1DHW.mean()
            masks_BKDHW, predicted_BKDHW = target, logits_BKDHW.sigmoid()
        if counts_B1DHW is not None:
            masks_BKDHW = masks_BKDHW * counts_B1DHW
            predicted_BKDHW = predicted_BKDHW * counts_B1DHW
        squared = not self.classes.exclusive
        return cross_entropy + _dice_loss(predicted_BKDHW, masks_BKDHW, squared=squared)


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
