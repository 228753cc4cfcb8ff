"""The terms that a loss is the sum of. MONAI, which is slow to import, is imported where needed.

Voxels that do not count are left out exactly: a term is the same as on a crop without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from segresmamba.config import LossConfig
from segresmamba.task.own_loss import OwnLoss

_TINY = 1e-12
_SMOOTH = 1e-5
_IGNORE = -100  # what PyTorch's cross-entropy leaves out by default
_AXES = (2, 3, 4)


@dataclass(frozen=True)
class Level:
    """One output of the network, and what it should be."""

    logits_BKDHW: Tensor
    target: Tensor
    """What `Classes.encode` gives: channel indices, or masks of regions."""
    counted_B1DHW: Tensor | None
    """True where a voxel counts; None if all do."""
    weights_K: Tensor | None
    """Weights of the channels; None if all are 1."""
    exclusive: bool

    @cached_property
    def masks_BKDHW(self) -> Tensor:
        """1 where a voxel belongs to a channel, float32."""
        if not self.exclusive:
            return self.target
        return torch.zeros_like(self.logits_BKDHW).scatter_(1, self.target[:, None], 1)

    @cached_property
    def foreground(self) -> tuple[Tensor, Tensor]:
        """Probabilities and masks of all channels but the background, 0 where nothing counts."""
        first = 1 if self.exclusive else 0
        logits = self.logits_BKDHW
        predicted = logits.softmax(1)[:, 1:] if self.exclusive else logits.sigmoid()
        masks = self.masks_BKDHW[:, first:]
        if self.counted_B1DHW is None:
            return predicted, masks
        return predicted * self.counted_B1DHW, masks * self.counted_B1DHW

    def mean(self, values: Tensor) -> Tensor:
        """The mean of values (B, 1 or K, D, H, W) over the voxels that count."""
        if self.counted_B1DHW is None:
            return values.mean()
        # A crop may have no voxel that counts.
        share = self.counted_B1DHW.float().mean().clamp(min=_TINY)
        return (values * self.counted_B1DHW).mean() / share

    def weighted_mean(self, values_BK: Tensor) -> Tensor:
        """The mean over samples and foreground channels, each times its weight, as in MONAI."""
        if self.weights_K is None:
            return values_BK.mean()
        return (values_BK * self.weights_K[1 if self.exclusive else 0 :]).mean()


Term = Callable[[Level, int], Tensor]
"""A level and the step of the training give a scalar."""


def terms(config: LossConfig, channels: int, *, exclusive: bool, padded: bool) -> list[Term]:
    """The terms of the configured loss.

    Args:
        config: The loss.
        channels: Channels of the logits.
        exclusive: Whether a voxel belongs to at most one class.
        padded: Whether there may be voxels that count for nothing.

    Raises:
        ConfigError: If the loss is that of another package and does not work.
    """
    if config.target is not None:
        own = OwnLoss(config.target, config.kwargs, channels, padded=padded)
        return [lambda level, _: own(level.logits_BKDHW, level.masks_BKDHW, level.counted_B1DHW)]
    match config.name:
        case "dice_ce":
            return [cross_entropy, dice]
        case "dice_focal":
            return [_focal(config, exclusive=exclusive), dice]
        case "dice_topk":
            return [_top_k(config.top_k), dice]
        case "dice_hausdorff":
            return [cross_entropy, dice, _hausdorff(config)]
        case "tversky":
            from monai.losses.tversky import TverskyLoss

            tversky = TverskyLoss(
                alpha=config.tversky_alpha, beta=config.tversky_beta, reduction="none",
                smooth_nr=_SMOOTH, smooth_dr=_SMOOTH,
            )  # fmt: skip
            # Where nothing counts, both tensors are 0, which adds neither overlap nor error.
            return [lambda level, _: level.weighted_mean(tversky(*level.foreground))]


def dice(level: Level, _: int) -> Tensor:
    """1 - Dice, averaged over samples and channels; regions square the predictions."""
    predicted, masks = level.foreground
    overlap_BK = (predicted * masks).sum(_AXES)
    measured = predicted if level.exclusive else predicted.square()
    sizes_BK = measured.sum(_AXES) + masks.sum(_AXES)
    return level.weighted_mean(1 - (2 * overlap_BK + _SMOOTH) / (sizes_BK + _SMOOTH))


def cross_entropy(level: Level, _: int) -> Tensor:
    """Cross-entropy over all channels, as in PyTorch; for regions that of each sigmoid."""
    counted = level.counted_B1DHW
    if level.exclusive and counted is None and level.weights_K is None:
        return F.cross_entropy(level.logits_BKDHW, level.target)
    if level.exclusive:
        target, weights_K = level.target, level.weights_K
        if counted is not None:
            target = target.masked_fill(~counted[:, 0], _IGNORE)
        summed = F.cross_entropy(
            level.logits_BKDHW, target, weights_K, ignore_index=_IGNORE, reduction="sum"
        )
        if weights_K is None:
            weights_K = torch.ones(level.logits_BKDHW.shape[1], device=target.device)
        weight_BDHW = weights_K[level.target]
        if counted is not None:
            weight_BDHW = weight_BDHW * counted[:, 0]
        # PyTorch's mean would be nan for a crop in which no voxel counts, or all weigh 0.
        return summed / weight_BDHW.sum().clamp(min=_TINY)
    if level.weights_K is None and level.counted_B1DHW is None:
        return F.binary_cross_entropy_with_logits(level.logits_BKDHW, level.target)
    return level.mean(_binary_cross_entropy(level))


def _binary_cross_entropy(level: Level) -> Tensor:
    weights = None if level.weights_K is None else level.weights_K.view(-1, 1, 1, 1)
    return F.binary_cross_entropy_with_logits(
        level.logits_BKDHW, level.target, weights, reduction="none"
    )


def _top_k(share: float) -> Term:
    """The mean cross-entropy of the voxels of each sample where it is largest."""

    def term(level: Level, _: int) -> Tensor:
        if level.exclusive:
            values_BDHW = F.cross_entropy(
                level.logits_BKDHW, level.target, level.weights_K, reduction="none"
            )
        else:
            values_BDHW = _binary_cross_entropy(level).mean(1)
        hardest = []
        for number, values in enumerate(values_BDHW):
            counted = level.counted_B1DHW
            voxels = values.flatten() if counted is None else values[counted[number, 0]]
            count = max(1, round(share * len(voxels))) if len(voxels) else 0
            hardest.append(voxels.topk(count, sorted=False).values.sum() / max(1, count))
        return torch.stack(hardest).mean()

    return term


def _focal(config: LossConfig, *, exclusive: bool) -> Term:
    from monai.losses.focal_loss import FocalLoss

    loss = FocalLoss(gamma=config.focal_gamma, use_softmax=exclusive, reduction="none")

    def term(level: Level, _: int) -> Tensor:
        values_BKDHW = loss(level.logits_BKDHW, level.masks_BKDHW)
        if level.weights_K is not None:
            values_BKDHW = values_BKDHW * level.weights_K.view(-1, 1, 1, 1)
        return level.mean(values_BKDHW)

    return term


def _hausdorff(config: LossConfig) -> Term:
    from monai.losses.hausdorff_loss import LogHausdorffDTLoss

    # The level's foreground is without the background already.
    loss = LogHausdorffDTLoss(include_background=True, reduction="none")
    warmup = config.hausdorff_warmup_steps

    def term(level: Level, step: int) -> Tensor:
        weight = config.hausdorff_weight * (min(1.0, step / warmup) if warmup else 1.0)
        if not weight:  # distance transforms are slow
            return level.logits_BKDHW.new_zeros(())
        samples = [loss(predicted, masks).flatten(1) for predicted, masks in _boxes(level)]
        return weight * level.weighted_mean(torch.cat(samples))

    return term


def _boxes(level: Level) -> Iterator[tuple[Tensor, Tensor]]:
    """Probabilities and masks (1, K, D, H, W) of each sample, within the voxels that count.

    A distance transform would take the padding for background.
    """
    predicted, masks = level.foreground
    for number in range(len(predicted)):
        box = [slice(None)] * 3
        if level.counted_B1DHW is not None:
            places_N3 = level.counted_B1DHW[number, 0].nonzero()
            if len(places_N3):
                ends = zip(places_N3.amin(0).tolist(), places_N3.amax(0).tolist(), strict=True)
                box = [slice(first, last + 1) for first, last in ends]
        yield predicted[number : number + 1, :, *box], masks[number : number + 1, :, *box]
