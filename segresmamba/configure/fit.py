"""The largest patch, and then the largest batch, whose training step fits the memory of a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from segresmamba.config import Config
from segresmamba.config.networks import SegResMambaFamily
from segresmamba.configure.rules import Array, Size, proportional_patch, whole_case, zero_stage_for
from segresmamba.errors import ConfigError
from segresmamba.planner.plan import CONTEXT_GIB, GIB, WORKSPACE_MARGIN, Prediction

# With fewer voxels than this, and less than a case, the settings that save memory are worth their
# time. It is the patch of nnU-Net on 8 GiB.
_ENOUGH = 128**3


@dataclass(frozen=True)
class Limits:
    """What a training step may take."""

    memory_gib: float
    voxels: float
    """Voxels of all crops of a step on one GPU, which follow from the time of the run."""
    crops: float
    """Voxels of all crops of a batch: a share of the dataset."""


def fit(
    config: Config, shape_3: Array, limits: Limits, predict: Callable[[Config], Prediction]
) -> Prediction:
    """Choose patch, batch, accumulation, ZeRO stage and recomputation.

    Args:
        config: The other settings, with the number of ranks.
        shape_3: Size of the median case.
        limits: What a step may take.
        predict: Predicts the memory of a step. It takes a second or two.

    Raises:
        ConfigError: If no patch fits.
    """
    multiple = stride(config)
    enough = min(_ENOUGH, limits.voxels, math.prod(whole_case(shape_3, multiple)))
    best: Prediction | None = None
    for option in _options(config, limits.memory_gib, predict, shape_3):
        found = _largest_patch(option, shape_3, limits, predict)
        if found and (best is None or _voxels(found) > _voxels(best)):
            best = found
        if best and _voxels(best) >= enough:
            break
    if best is None:
        raise ConfigError(
            "no training step of this network fits",
            where="--gpu-memory-gib",
            got=f"{limits.memory_gib:g}",
            remedy="give more memory, or a smaller network with --model",
        )
    if best.config.data.patch == whole_case(shape_3, multiple):
        return _largest_batch(best, limits, predict)
    return best


def stride(config: Config) -> int:
    """What the sides of a patch are multiples of."""
    model = config.model
    return 2 << len(model.dims) if isinstance(model, SegResMambaFamily) else 32


def changed(config: Config, section: str, **values: object) -> Config:
    """The configuration with other values in one section."""
    update = {section: getattr(config, section).model_copy(update=values)}
    return config.model_copy(update=update)


def _options(
    config: Config,
    memory_gib: float,
    predict: Callable[[Config], Prediction],
    shape_3: Array,
) -> Iterator[Config]:
    """Two crops in a step or one per GPU; then one at a time; then with recomputation."""
    ranks = config.cluster.world_size
    batch = max(2, ranks)
    patch = proportional_patch(shape_3, 64**3, stride(config))
    plain = changed(changed(config, "train", batch_size=batch), "data", patch=patch)
    weights_bytes = predict(plain).activations.weights_bytes
    stage = zero_stage_for(weights_bytes, ranks, memory_gib)
    option = changed(plain, "train", zero_stage=stage)
    yield option
    if batch > ranks:
        option = changed(option, "train", accumulation=batch // ranks)
        yield option
    if isinstance(config.model, SegResMambaFamily):
        yield changed(option, "model", checkpoint_stages=len(config.model.dims))
    elif hasattr(config.model, "use_checkpoint"):
        yield changed(option, "model", use_checkpoint=True)


def _largest_patch(
    config: Config, shape_3: Array, limits: Limits, predict: Callable[[Config], Prediction]
) -> Prediction | None:
    """The largest patch that fits; None if none does.

    Activations grow linearly with the voxels, so two simulations tell the size, and a third one
    confirms it.
    """

    def at(voxels: float) -> Prediction:
        patch: Size = proportional_patch(shape_3, voxels, stride(config))
        return predict(changed(config, "data", patch=patch))

    small, large = at(64**3), at(_ENOUGH)
    most = limits.voxels / small.micro_batch / config.train.accumulation
    per_voxel = (large.activations.peak_bytes - small.activations.peak_bytes) / max(
        _voxels(large) - _voxels(small), 1
    )
    if per_voxel > 0:
        room = _room_bytes(small, limits.memory_gib) - small.activations.peak_bytes
        most = min(most, _voxels(small) + room / per_voxel)
    found = at(most)
    while found.needed_gib > limits.memory_gib:
        smaller = at(0.9 * _voxels(found))
        if _voxels(smaller) >= _voxels(found):
            return None
        found = smaller
    return found


def _largest_batch(
    found: Prediction, limits: Limits, predict: Callable[[Config], Prediction]
) -> Prediction:
    """More crops at once: as many as fit, within the limits of time and of the dataset's size."""
    ranks, voxels = found.config.cluster.world_size, _voxels(found)
    per_crop = found.activations.peak_bytes / found.micro_batch
    room = _room_bytes(found, limits.memory_gib)
    crops = int(min(room / per_crop, limits.voxels / voxels, limits.crops / voxels / ranks))
    for more in range(crops, found.micro_batch, -1):
        batch = max(more * ranks, found.config.train.batch_size)
        tried = predict(changed(found.config, "train", batch_size=batch, accumulation=1))
        if tried.needed_gib <= limits.memory_gib:
            return tried
    return found


def _room_bytes(prediction: Prediction, memory_gib: float) -> float:
    """What activations may take of a GPU's memory."""
    held_bytes = prediction.held.in_backward
    return (memory_gib - CONTEXT_GIB) / (1 + WORKSPACE_MARGIN) * GIB - held_bytes


def _voxels(prediction: Prediction) -> int:
    return math.prod(prediction.config.data.patch)
