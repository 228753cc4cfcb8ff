"""The changes of intensity in augmentation: what each does to a batch, in the order of `CHANGES`.

Each takes the batch and the drawn numbers of its samples, and changes the batch in place. A sample
is computed without the others, so its result does not depend on the batch that it is in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-8

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class IntensityChanges:
    """The changes of one sample; None, or an empty mapping, where a change is not made."""

    factor_C: Array
    offset_C: Array
    noise_seed: int
    noise_std: float | None = None
    sigma_3: Mapping[int, Array] = field(default_factory=dict)
    """Width of the blur along each axis in voxels, by channel."""
    contrast_C: Array | None = None
    resolution_3: Mapping[int, Array] = field(default_factory=dict)
    """Share of the voxels that is kept along each axis, by channel."""
    inverse_gamma_C: Array | None = None
    gamma_C: Array | None = None
    keeps_statistics: bool = False


def change_intensities(x_BCDHW: Tensor, drawn: Sequence[IntensityChanges]) -> None:
    """Change a batch in place."""
    for change in CHANGES:
        change(x_BCDHW, drawn)


def _blur(x_BCDHW: Tensor, drawn: Sequence[IntensityChanges]) -> None:
    for x_CDHW, changes in zip(x_BCDHW, drawn, strict=True):
        for channel, sigma_3 in changes.sigma_3.items():
            x_CDHW[channel] = _smooth(x_CDHW[channel], sigma_3)


def _smooth(x_DHW: Tensor, sigma_3: Array) -> Tensor:
    """Gaussian smoothing, axis by axis, of a volume that is mirrored at its border."""
    smooth = x_DHW[None, None]
    for axis, sigma in enumerate(sigma_3):
        radius = math.ceil(3 * sigma)
        weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        kernel = torch.as_tensor(weights / weights.sum(), dtype=x_DHW.dtype, device=x_DHW.device)
        padding = [0] * 6  # F.pad begins with the last axis
        padding[4 - 2 * axis] = padding[5 - 2 * axis] = radius
        thin = x_DHW.shape[axis] <= radius  # too thin to be mirrored
        padded = F.pad(smooth, padding, mode="replicate" if thin else "reflect")
        smooth = F.conv3d(padded, kernel.view([-1 if one == axis + 2 else 1 for one in range(5)]))
    return smooth[0, 0]


def _scale_and_shift(x_BCDHW: Tensor, drawn: Sequence[IntensityChanges]) -> None:
    x_BCDHW.mul_(_per_channel(x_BCDHW, [changes.factor_C for changes in drawn]))
    x_BCDHW.add_(_per_channel(x_BCDHW, [changes.offset_C for changes in drawn]))


def _contrast(x_BCDHW: Tensor, drawn: Sequence[IntensityChanges]) -> None:
    """Stretch the distances from a channel's mean, within its least and greatest intensity."""
    chosen, factor = _chosen(x_BCDHW, [changes.contrast_C for changes in drawn])
    if chosen:
        old_BCDHW = x_BCDHW[chosen]
        mean = old_BCDHW.mean(_AXES, keepdim=True)
        low, high = old_BCDHW.amin(_AXES, keepdim=True), old_BCDHW.amax(_AXES, keepdim=True)
        x_BCDHW[chosen] = ((old_BCDHW - mean) * factor + mean).clamp(low, high)


def _lower_resolution(x_BCDHW: Tensor, drawn: Sequence[IntensityChanges]) -> None:
    for x_CDHW, changes in zip(x_BCDHW, drawn, strict=True):
        for channel, share_3 in changes.resolution_3.items():
            shape = x_CDHW.shape[1:]
            size = [max(1, round(n * share)) for n, share in zip(shape, share_3, strict=True)]
            coarse = F.interpolate(x_CDHW[channel][None, None], size, mode="nearest-exact")
            x_CDHW[channel] = F.interpolate(coarse, tuple(shape), mode="trilinear")[0, 0]


def _inverse_gamma(x_BCDHW: Tensor, drawn: Sequence[IntensityChanges]) -> None:
    _bend(x_BCDHW, drawn, [changes.inverse_gamma_C for changes in drawn], sign=-1)


def _gamma(x_BCDHW: Tensor, drawn: Sequence[IntensityChanges]) -> None:
    _bend(x_BCDHW, drawn, [changes.gamma_C for changes in drawn], sign=1)


def _bend(
    x_BCDHW: Tensor,
    drawn: Sequence[IntensityChanges],
    gammas_C: Sequence[Array | None],
    sign: int,
) -> None:
    """Apply a curve that keeps the least and the greatest intensity of each channel.

    Where `keeps_statistics` is set, the channel then gets its mean and deviation back instead.
    """
    chosen, exponent = _chosen(x_BCDHW, gammas_C)
    if not chosen:
        return
    old_BCDHW = x_BCDHW[chosen] * sign
    low = old_BCDHW.amin(_AXES, keepdim=True)
    span = (old_BCDHW.amax(_AXES, keepdim=True) - low).clamp(min=EPSILON)
    new_BCDHW = ((old_BCDHW - low) / span) ** exponent * span + low
    if drawn[0].keeps_statistics:  # the same in all samples
        std, mean = torch.std_mean(old_BCDHW, _AXES, keepdim=True)
        std_now, mean_now = torch.std_mean(new_BCDHW, _AXES, keepdim=True)
        new_BCDHW = (new_BCDHW - mean_now) * (std / std_now.clamp(min=EPSILON)) + mean
    x_BCDHW[chosen] = new_BCDHW * sign


def _noise(x_BCDHW: Tensor, drawn: Sequence[IntensityChanges]) -> None:
    for x_CDHW, changes in zip(x_BCDHW, drawn, strict=True):
        if changes.noise_std is not None:
            generator = torch.Generator(x_CDHW.device).manual_seed(changes.noise_seed)
            noise_CDHW = torch.empty_like(x_CDHW).normal_(generator=generator)
            x_CDHW.add_(noise_CDHW, alpha=changes.noise_std)


CHANGES: tuple[Callable[[Tensor, Sequence[IntensityChanges]], None], ...] = (
    _blur,
    _scale_and_shift,
    _contrast,
    _lower_resolution,
    _inverse_gamma,
    _gamma,
    _noise,
)
"""In the order in which they are made."""
_AXES = (2, 3, 4)


def _chosen(x_BCDHW: Tensor, values_C: Sequence[Array | None]) -> tuple[list[int], Tensor]:
    """The samples that have values, and these as (B, C, 1, 1, 1)."""
    chosen = {place: value_C for place, value_C in enumerate(values_C) if value_C is not None}
    values = _per_channel(x_BCDHW, list(chosen.values())) if chosen else x_BCDHW.new_empty(0)
    return list(chosen), values


def _per_channel(x_BCDHW: Tensor, values_BC: list[Array]) -> Tensor:
    return like(x_BCDHW, values_BC)[:, :, None, None, None]


def like(x: Tensor, values: list[Array]) -> Tensor:
    """Values with the type and on the device of `x`."""
    return torch.as_tensor(np.stack(values), dtype=x.dtype, device=x.device)
