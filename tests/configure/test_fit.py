"""Patch and batch from a memory that is known, without a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from segresmamba.config import Config, SegResMambaConfig, load_config
from segresmamba.configure.fit import Limits, changed, fit
from segresmamba.errors import ConfigError
from segresmamba.planner.plan import Prediction
from segresmamba.planner.simulation import Activations

LARGE, SMALL = np.array([187.0, 512, 512]), np.array([64.0, 64, 64])
NO_LIMIT = math.inf


def predict(config: Config) -> Prediction:
    """600 bytes a voxel, a third of it with recomputation; 2**20 bytes of weights."""
    model = config.model
    assert isinstance(model, SegResMambaConfig)
    crops = config.train.batch_size // config.cluster.world_size // config.train.accumulation
    per_voxel = 200 if model.checkpoint_stages else 600
    peak = crops * per_voxel * math.prod(config.data.patch)
    return Prediction(config, crops, Activations(2**20, 2**20, peak, peak))


def found(
    shape: np.ndarray[tuple[int], np.dtype[np.float64]], limits: Limits, ranks: int = 1
) -> Config:
    base = changed(load_config(), "cluster", tasks_per_node=ranks)
    prediction = fit(base, shape, limits, predict)
    assert prediction.needed_gib <= limits.memory_gib
    return prediction.config


def test_more_memory_gives_a_larger_patch() -> None:
    sizes = [
        math.prod(found(LARGE, Limits(memory, NO_LIMIT, NO_LIMIT)).data.patch)
        for memory in (4, 8, 24, 80)
    ]
    assert sizes == sorted(set(sizes))


def test_the_patch_takes_most_of_the_memory_without_saving_any() -> None:
    config = found(LARGE, Limits(24, NO_LIMIT, NO_LIMIT))
    assert predict(config).needed_gib > 0.7 * 24
    assert config.train.accumulation == 1
    assert config.model.model_dump()["checkpoint_stages"] == 0


def test_little_memory_is_saved_first_by_single_crops_and_then_by_recomputation() -> None:
    single = found(LARGE, Limits(2.6, NO_LIMIT, NO_LIMIT))
    assert (single.train.batch_size, single.train.accumulation) == (2, 2)
    assert single.model.model_dump()["checkpoint_stages"] == 0
    lean = found(LARGE, Limits(1.8, NO_LIMIT, NO_LIMIT))
    assert lean.model.model_dump()["checkpoint_stages"] == 4


def test_whole_cases_leave_memory_for_a_larger_batch_up_to_a_share_of_the_dataset() -> None:
    voxels = math.prod(SMALL)
    assert found(SMALL, Limits(8, NO_LIMIT, 9.5 * voxels)).train.batch_size == 9
    assert found(SMALL, Limits(8, NO_LIMIT, 0.5 * voxels)).train.batch_size == 2
    assert found(SMALL, Limits(8, 4 * voxels, NO_LIMIT)).train.batch_size == 4
    assert found(SMALL, Limits(8, NO_LIMIT, NO_LIMIT)).train.batch_size > 30


def test_time_limits_the_patch_too() -> None:
    config = found(LARGE, Limits(80, 2 * 10**6, NO_LIMIT))
    assert 0.5 * 10**6 < math.prod(config.data.patch) <= 10**6


def test_every_gpu_has_a_crop_and_the_batch_is_a_multiple_of_the_gpus() -> None:
    config = found(LARGE, Limits(8, NO_LIMIT, NO_LIMIT), ranks=3)
    assert (config.train.batch_size, config.train.accumulation) == (3, 1)
    config = found(SMALL, Limits(8, NO_LIMIT, 10 * math.prod(SMALL)), ranks=4)
    assert config.train.batch_size == 8


def test_a_gpu_that_is_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="no training step") as caught:
        found(LARGE, Limits(1.01, NO_LIMIT, NO_LIMIT))
    assert caught.value.where == "--gpu-memory-gib"
