"""The changes of intensity in augmentation: what each does to a batch, in the order of `CHANGES`.

Each takes the batch and the drawn numbers of its samples, and changes the batch in place. A sample
is computed without the others, so its result does not depend on the batch that it is in.

A change is a generator: it yields the numbers that it needs on the device, gets them there, and
then computes. So the numbers of all changes of a batch go to a GPU in one copy (`make_changes`),
for which the host does not wait, as it would for each small tensor that it made from a list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-8

Array = npt.NDArray[np.float64]
Change = Generator[Sequence[Array], Sequence[Tensor], None]
"""A change of one batch, which yields once."""


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


def make_changes(changes: Sequence[Change], device: torch.device) -> None:
    """Make changes one after the other.

    Args:
        changes: The changes of one batch.
        device: Where the batch lies.
    """
    asked = [next(change) for change in changes]
    arrays = [array for numbers in asked for array in numbers]
    flat = torch.from_numpy(np.concatenate([np.empty(0), *map(np.ravel, arrays)]).astype("float32"))
    if device.type == "cuda":
        flat = flat.pin_memory()  # otherwise the host would wait for the copy
    sizes = [array.size for array in arrays]
    parts = flat.to(device, non_blocking=True).split(sizes)  # type: ignore[no-untyped-call]
    sent = (part.view(array.shape) for part, array in zip(parts, arrays, strict=True))
    for change, numbers in zip(changes, asked, strict=True):
        with suppress(StopIteration):
            change.send([next(sent) for _ in numbers])


def _blur(x_BCDHW: Tensor, drawn: Sequence[IntensityChanges]) -> Change:
    blurred = [
        (place, channel, sigma_3)
        for place, changes in enumerate(drawn)
        for channel, sigma_3 in changes.sigma_3.items()
    ]
    gaussians = []
    for *_, sigma_3 in blurred:
        for sigma in sigma_3:
            radius = math.ceil(3 * sigma)
            weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
            gaussians.append(weights / weights.sum())
    kernels = iter((yield gaussians))
    for place, channel, _ in blurred:
        x_DHW = x_BCDHW[place, channel]
        x_DHW.copy_(_smooth(x_DHW, [next(kernels) for _ in range(3)]))


def _smooth(x_DHW: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """Smoothing, axis by axis, of a volume that is mirrored at its border."""
    smooth = x_DHW[None, None]
    for axis, kernel in enumerate(kernels):
        radius = len(kernel) // 2
        padding = [0] * 6  # F.pad begins with the last axis
        padding[4 - 2 * axis] = padding[5 - 2 * axis] = radius
        thin = x_DHW.shape[axis] <= radius  # too thin to be mirrored
        padded = F.pad(smooth, padding, mode="replicate" if thin else "reflect")
        smooth = F.conv3d(padded, kernel.view([-1 if one == axis + 2 else 1 for one in range(5)]))
    return smooth[0, 0]


def _scale_and_shift(x_BCDHW: Tensor, drawn: Sequence[IntensityChanges]) -> Change:
    factor_BC, offset_BC = yield [
        np.stack([changes.factor_C for changes in drawn]),
        np.stack([changes.offset_C for changes in drawn]),
    ]
    x_BCDHW.mul_(factor_BC[:, :, None, None, None]).add_(offset_BC[:, :, None, None, None])


def _contrast(x_BCDHW: Tensor, drawn: Sequence[IntensityChanges]) -> Change:
    """Stretch the distances from a channel's mean, within its least and greatest intensity."""
    asked = chosen([changes.contrast_C for changes in drawn])
    place_M, factor_MC = yield asked
    if not len(asked[0]):
        return
    place_M, factor = place_M.long(), factor_MC[:, :, None, None, None]
    old_MCDHW = x_BCDHW.index_select(0, place_M)
    mean = old_MCDHW.mean(_AXES, keepdim=True)
    low, high = old_MCDHW.amin(_AXES, keepdim=True), old_MCDHW.amax(_AXES, keepdim=True)
    x_BCDHW.index_copy_(0, place_M, ((old_MCDHW - mean) * factor + mean).clamp(low, high))


def _lower_resolution(x_BCDHW: Tensor, drawn: Sequence[IntensityChanges]) -> Change:
    yield []
    for x_CDHW, changes in zip(x_BCDHW, drawn, strict=True):
        for channel, share_3 in changes.resolution_3.items():
            shape = x_CDHW.shape[1:]
            size = [max(1, round(n * share)) for n, share in zip(shape, share_3, strict=True)]
            coarse = F.interpolate(x_CDHW[channel][None, None], size, mode="nearest-exact")
            x_CDHW[channel] = F.interpolate(coarse, tuple(shape), mode="trilinear")[0, 0]


def _bend(
    x_BCDHW: Tensor,
    drawn: Sequence[IntensityChanges],
    *,
    gamma_C: Callable[[IntensityChanges], Array | None],
    sign: int,
) -> Change:
    """Apply a curve that keeps the least and the greatest intensity of each channel.

    Where `keeps_statistics` is set, the channel then gets its mean and deviation back instead.
    """
    asked = chosen(list(map(gamma_C, drawn)))
    place_M, exponent_MC = yield asked
    if not len(asked[0]):
        return
    place_M, exponent = place_M.long(), exponent_MC[:, :, None, None, None]
    old_MCDHW = x_BCDHW.index_select(0, place_M) * sign
    low = old_MCDHW.amin(_AXES, keepdim=True)
    span = (old_MCDHW.amax(_AXES, keepdim=True) - low).clamp(min=EPSILON)
    new_MCDHW = ((old_MCDHW - low) / span) ** exponent * span + low
    if drawn[0].keeps_statistics:  # the same in all samples
        std, mean = torch.std_mean(old_MCDHW, _AXES, keepdim=True)
        std_now, mean_now = torch.std_mean(new_MCDHW, _AXES, keepdim=True)
        new_MCDHW = (new_MCDHW - mean_now) * (std / std_now.clamp(min=EPSILON)) + mean
    x_BCDHW.index_copy_(0, place_M, new_MCDHW * sign)


def _noise(x_BCDHW: Tensor, drawn: Sequence[IntensityChanges]) -> Change:
    yield []
    generator = torch.Generator(x_BCDHW.device)
    for x_CDHW, changes in zip(x_BCDHW, drawn, strict=True):
        if changes.noise_std is not None:
            generator.manual_seed(changes.noise_seed)
            noise_CDHW = torch.empty_like(x_CDHW).normal_(generator=generator)
            x_CDHW.add_(noise_CDHW, alpha=changes.noise_std)


CHANGES: tuple[Callable[[Tensor, Sequence[IntensityChanges]], Change], ...] = (
    _blur,
    _scale_and_shift,
    _contrast,
    _lower_resolution,
    partial(_bend, gamma_C=attrgetter("inverse_gamma_C"), sign=-1),
    partial(_bend, gamma_C=attrgetter("gamma_C"), sign=1),
    _noise,
)
"""In the order in which they are made."""
_AXES = (2, 3, 4)


def chosen(values: Sequence[Array | None]) -> list[Array]:
    """The places of the samples that have values, (M,), and these values, (M, ...)."""
    places = [place for place, value in enumerate(values) if value is not None]
    kept = [value for value in values if value is not None]
    return [np.array(places, np.float64), np.stack(kept) if kept else np.empty((0, 0))]
