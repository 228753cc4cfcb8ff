"""Random changes of a batch, made on the training device.

The changes of a sample are a pure function of (seed, index). Each sample draws its numbers from its
own generator, in a fixed order, whatever the batch, the rank and the other settings are. Only the
noise comes from torch's generator of the device, so it differs between CPU and GPU.

MONAI's intensity transforms are not used: they take one sample at a time and
draw from a shared NumPy state, which a restart could not reproduce. The torch code here also takes
half of their time on a CPU (all four changes, one thread: 9 against 22 ms for two 64^3 crops, 0.54
against 1.0 s for two crops of 4 channels and 128^3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from segresmamba.config import AugmentConfig
from segresmamba.data.stream.batch import Batch
from segresmamba.data.stream.intensity import (
    CHANGES,
    EPSILON,
    Array,
    Change,
    IntensityChanges,
    chosen,
    make_changes,
)
from segresmamba.data.stream.own_augmentation import change_sample, own_augmentation

_AUGMENT, _OWN = 2, 3  # numbers of these streams of random numbers; the sampler has 0 and 1
_AXES = np.array(["D", "H", "W"])
# The changes that have a probability for each sample, in the order in which its numbers are drawn.
_FIRST = ("affine", "intensity_scale", "intensity_shift", "gamma", "noise")
_LATER = ("rotation", "scaling", "blur", "contrast", "low_resolution", "inverse_gamma")


@torch.no_grad()
def augment(batch: Batch, config: AugmentConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Normalise a batch and change it at random: in space, in intensity, and by code of the user's.

    Args:
        batch: Crops as stored, on the device to compute on.
        config: Probabilities, all per sample, and ranges.
        seed: Seed of the run.

    Returns:
        Image (B, C, D, H, W) of float32, and label (B, D, H, W) of int64 with its stored values.
    """
    channels = batch.image_BCDHW.shape[1]
    drawn = [_draw(config, seed, index, channels) for index in batch.index_B.tolist()]
    x_BCDHW = normalise(batch.image_BCDHW, batch.normalisation_BC4)
    label_BDHW = batch.label_BDHW.long()
    for x_CDHW, label_DHW, changes in zip(x_BCDHW, label_BDHW, drawn, strict=True):
        if axes := changes.flipped_axes:
            x_CDHW.copy_(x_CDHW.flip([axis + 1 for axis in axes]))
            label_DHW.copy_(label_DHW.flip(axes))
    warp = _warp(x_BCDHW, label_BDHW, drawn)
    intensities = [change(x_BCDHW, drawn) for change in CHANGES]
    make_changes([warp, *intensities], x_BCDHW.device)
    if own := own_augmentation(config):
        for place, index in enumerate(batch.index_B.tolist()):
            rng = np.random.default_rng([seed, _OWN, index])
            change_sample(own, x_BCDHW[place], label_BDHW[place], rng)
    return x_BCDHW, label_BDHW


def normalise(image_BCDHW: Tensor, normalisation_BC4: Tensor) -> Tensor:
    """Clip intensities to [low, high], subtract the mean and divide by the deviation.

    The store's policy decides whether the four numbers are those of the volume's channel or of the
    dataset's. Training and inference share this function. Voxels that are zero get no exception.

    Args:
        image_BCDHW: Intensities as stored.
        normalisation_BC4: Low, high, mean and deviation of each channel.
    """
    low, high, mean, std = normalisation_BC4[:, :, :, None, None, None].unbind(2)
    x_BCDHW = image_BCDHW.clamp(low, high)
    return x_BCDHW.sub_(mean).div_(std.clamp(min=EPSILON))


@dataclass(frozen=True, kw_only=True)
class _Changes(IntensityChanges):
    """All changes of one sample."""

    flipped_axes: list[int]
    matrix_33: Array | None


def _draw(config: AugmentConfig, seed: int, index: int, channels: int) -> _Changes:
    """Draw the changes of one sample.

    Every number is drawn, used or not, so that no setting shifts the numbers of another. What a
    later version draws comes last, so that it does not change the runs of earlier ones.
    """
    rng = np.random.default_rng([seed, _AUGMENT, index])
    flip_3, chances = rng.random(3), dict(zip(_FIRST, rng.random(5), strict=True))
    rotation_3 = rng.uniform(-config.rotation_degrees, config.rotation_degrees, 3)
    scale = 1 + rng.uniform(-config.scale_range, config.scale_range)
    factor_C = 1 + config.intensity_scale_range * rng.uniform(-1, 1, channels)
    offset_C = config.intensity_shift_range * rng.uniform(-1, 1, channels)
    gamma_C = rng.uniform(*config.gamma_range, channels)
    noise_std, noise_seed = rng.uniform(0, config.noise_std), int(rng.integers(2**62))
    chances |= zip(_LATER, rng.random(6), strict=True)
    voxel_size = rng.uniform(*config.scaling_range)
    sigma_C3 = rng.uniform(*config.blur_sigma, (channels, 3))
    share_C = rng.uniform(*config.low_resolution_range, channels)
    blurred_C, coarse_C = rng.random((2, channels)) < config.channel_probability
    contrast_C, balanced_C, inverse_C = rng.random((3, channels))
    made = {name: value < getattr(config, f"{name}_probability") for name, value in chances.items()}
    is_mirrored_3 = (flip_3 < config.flip_probability) & np.isin(_AXES, config.flip_axes)
    share_C3 = np.where(np.isin(_AXES, config.scaling_axes), share_C[:, None], 1)
    blurred = np.flatnonzero(blurred_C & made["blur"]).tolist()
    coarse = np.flatnonzero(coarse_C & made["low_resolution"]).tolist()
    if config.gamma_keeps_statistics:
        gamma_C = _balanced(balanced_C, config.gamma_range)
    return _Changes(
        flipped_axes=np.flatnonzero(is_mirrored_3).tolist(),
        matrix_33=_spatial_change(config, made, rotation_3, scale, voxel_size),
        sigma_3={c: sigma_C3[c] for c in blurred},
        factor_C=factor_C if made["intensity_scale"] else np.ones(channels),
        offset_C=offset_C if made["intensity_shift"] else np.zeros(channels),
        contrast_C=_balanced(contrast_C, config.contrast_range) if made["contrast"] else None,
        resolution_3={c: share_C3[c] for c in coarse},
        inverse_gamma_C=_balanced(inverse_C, config.gamma_range) if made["inverse_gamma"] else None,
        gamma_C=gamma_C if made["gamma"] else None,
        keeps_statistics=config.gamma_keeps_statistics,
        noise_std=noise_std if made["noise"] else None,
        noise_seed=noise_seed,
    )


def _spatial_change(
    config: AugmentConfig,
    made: Mapping[str, bool],
    rotation_3: Array,
    scale: float,
    voxel_size: float,
) -> Array | None:
    """The map of `_matrix` for the changes that are made; None if there are none."""
    if not (made["affine"] or made["rotation"] or made["scaling"]):
        return None
    rotates_3 = (made["affine"] or made["rotation"]) & np.isin(_AXES, config.rotation_axes)
    zoom = (scale if made["affine"] else 1) / (voxel_size if made["scaling"] else 1)
    scales_3 = np.isin(_AXES, config.scaling_axes)
    return _matrix(np.where(rotates_3, rotation_3, 0), np.where(scales_3, zoom, 1))


def _balanced(uniform_C: Array, between: tuple[float, float]) -> Array:
    """Numbers of a range from numbers of 0 to 1: half of them below 1, as in nnU-Net."""
    low, high = between
    if not low < 1 < high:
        return low + (high - low) * uniform_C
    below_C = low + (1 - low) * 2 * uniform_C
    return np.where(uniform_C < 0.5, below_C, 1 + (high - 1) * (2 * uniform_C - 1))


def _matrix(rotation_3: Array, scale_3: Array) -> Array:
    """Map from an output voxel to the voxel that its value comes from.

    Both are in voxels (D, H, W) from the crop's centre. The rotation ignores the voxel size, so it
    also shears a little if the spacings differ. nnU-Net's does the same.
    """
    # Written out, because SciPy takes each start of a training a fifth of a second to import.
    (c, d, e), (s, t, u) = (f(np.radians(rotation_3)) for f in (np.cos, np.sin))
    about_first = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    about_second = np.array([[d, 0, t], [0, 1, 0], [-t, 0, d]])
    about_third = np.array([[e, -u, 0], [u, e, 0], [0, 0, 1]])
    rotation_33: Array = about_third @ about_second @ about_first
    return rotation_33 / scale_3


def _warp(x_BCDHW: Tensor, label_BDHW: Tensor, drawn: list[_Changes]) -> Change:
    # torch counts from the centre too, with the last axis first, and from -1 to 1 on each side.
    extent_3 = np.maximum(np.array(x_BCDHW.shape[2:]) - 1, 1)
    thetas_34 = [
        None
        if changes.matrix_33 is None
        else np.pad(
            (changes.matrix_33 * extent_3 / extent_3[:, None])[::-1, ::-1], ((0, 0), (0, 1))
        )
        for changes in drawn
    ]
    asked = chosen(thetas_34)
    place_M, theta_M34 = yield asked
    if not len(asked[0]):
        return
    place_M = place_M.long()
    size = [len(place_M), 1, *x_BCDHW.shape[2:]]
    grid_MDHW3 = F.affine_grid(theta_M34, size, align_corners=True)
    # Voxels from outside the crop repeat its border, in image and label alike.
    sample = partial(F.grid_sample, grid=grid_MDHW3, padding_mode="border", align_corners=True)
    label_M1DHW = label_BDHW.index_select(0, place_M)[:, None].float()
    warped_MCDHW = sample(x_BCDHW.index_select(0, place_M), mode="bilinear")
    x_BCDHW.index_copy_(0, place_M, warped_MCDHW)
    label_BDHW.index_copy_(0, place_M, sample(label_M1DHW, mode="nearest")[:, 0].long())
