"""Whether a training step fits a GPU, and if not, the cheapest change that makes it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from segresmamba.config import Config, ModelConfig
from segresmamba.config.networks import SegResMambaFamily
from segresmamba.errors import ConfigError
from segresmamba.planner.simulation import Activations, simulate
from segresmamba.planner.states import States, states
from segresmamba.task.task import Task

GIB = 2**30
# Both are estimates, made without a GPU: a CUDA context and its libraries take several hundred MiB,
# and convolutions need workspaces, which do not follow from the shapes.
CONTEXT_GIB = 1.0
WORKSPACE_MARGIN = 0.10
_PATCH_STEP = 32  # a multiple of the total stride of every network here


@dataclass(frozen=True)
class Prediction:
    """One configuration and the memory of its training step on one GPU."""

    config: Config
    micro_batch: int
    activations: Activations

    @property
    def held(self) -> States:
        """What weights, gradients and optimizer take."""
        made, config = self.activations, self.config
        frozen_bytes = made.weights_bytes - made.trained_bytes
        ranks = config.cluster.world_size
        return states(
            config.train.zero_stage, made.trained_bytes, ranks, frozen_bytes,
            overlap_comm=config.train.overlap_comm,
        )  # fmt: skip

    @property
    def peak_bytes(self) -> int:
        """The most that tensors take at once."""
        held = self.held
        return max(held.in_backward + self.activations.peak_bytes, held.in_step)

    @property
    def needed_gib(self) -> float:
        """Memory that the GPU should have: tensors, workspaces and context."""
        return self.peak_bytes / GIB * (1 + WORKSPACE_MARGIN) + CONTEXT_GIB


@dataclass(frozen=True)
class MemoryPlan:
    """The configuration as it is, and a similar one that fits."""

    gpu_memory_gib: float
    asked: Prediction
    proposed: Prediction

    @property
    def fits(self) -> bool:
        """Whether nothing needs to change."""
        return self.asked.needed_gib <= self.gpu_memory_gib

    @property
    def overrides(self) -> tuple[str, ...]:
        """The changes, as `train` takes them."""
        before, after = self.asked.config, self.proposed.config
        overrides = []
        if after.data.patch != before.data.patch:
            overrides.append(f"data.patch=[{','.join(map(str, after.data.patch))}]")
        overrides += [
            f"train.{key}={getattr(after.train, key)}"
            for key in ("accumulation", "zero_stage")
            if getattr(after.train, key) != getattr(before.train, key)
        ]
        model = before.model.model_dump()
        overrides += [
            f"model.{key}={str(value).lower()}"
            for key, value in after.model.model_dump().items()
            if value != model[key]
        ]
        return tuple(overrides)


class Planner:
    """Predicts the memory of configurations of one task, and simulates each of them once.

    Args:
        task: Channels and labels of the dataset, and the configuration to start from.
    """

    def __init__(self, task: Task) -> None:
        self.config = task.config
        self._channels, self._labels = len(task.dataset.channel_names), task.dataset.labels
        self._seen: dict[tuple[str, tuple[int, int, int], int], Activations] = {}

    def predict(self, config: Config) -> Prediction:
        """Predict the memory of a training step, which is the same on all ranks."""
        train = config.train
        crops = train.batch_size // (config.cluster.world_size * train.accumulation)
        key = (config.model.model_dump_json(), config.data.patch, crops)
        if key not in self._seen:
            self._seen[key] = simulate(config, self._channels, self._labels, crops, "cuda")
        return Prediction(config, crops, self._seen[key])

    def plan(self, gpu_memory_gib: float) -> MemoryPlan:
        """Find the cheapest change: fewer crops at once come first, a smaller patch last.

        Raises:
            ConfigError: If not even the smallest patch fits.
        """
        asked = self.predict(self.config)
        if asked.needed_gib <= gpu_memory_gib:
            return MemoryPlan(gpu_memory_gib, asked, asked)
        for patch in _patches(self.config.data.patch):
            options = list(_options(_changed(self.config, "data", patch=patch)))
            # The least memory at this patch: one crop at a time in the network that keeps least.
            # Not always at the highest stage: for a small network, the buffers of stage 3 may take
            # more than its states.
            network = options[-1][-1].model
            fewest_crops = [option[-1] for option in options if option[-1].model == network]
            try:
                leanest = min(map(self.predict, fewest_crops), key=lambda one: one.needed_gib)
            except ConfigError:  # the network does not take a patch as small as this
                break
            if leanest.needed_gib > gpu_memory_gib:
                continue
            # A simulation takes time, so more crops are tried only where one crop fits.
            found = (
                self.predict(option)
                for fewer_crops in options
                if self.predict(fewer_crops[-1]).needed_gib <= gpu_memory_gib
                for option in fewer_crops
            )
            fitting = next(one for one in found if one.needed_gib <= gpu_memory_gib)
            return MemoryPlan(gpu_memory_gib, asked, fitting)
        raise ConfigError(
            "no training step of this network fits",
            where="plan.gpu_memory_gib",
            got=f"{gpu_memory_gib:g}; the smallest tried needs {leanest.needed_gib:.2f} GiB, with "
            f"data.patch={list(leanest.config.data.patch)}, one crop at a time and every "
            "memory-saving setting",
            remedy="take more or larger GPUs, fewer model channels, or another model",
        )


def gpu_memory_gib(config: Config) -> float:
    """The memory to plan for: `plan.gpu_memory_gib`, else that of this machine's first GPU.

    Raises:
        ConfigError: If there is neither.
    """
    if config.plan.gpu_memory_gib is not None:
        return config.plan.gpu_memory_gib
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory / GIB)
    raise ConfigError(
        "the memory of the GPUs is not known",
        where="plan.gpu_memory_gib",
        got="nothing, and there is no GPU here",
        remedy="give the GiB of one GPU, as in plan.gpu_memory_gib=40",
    )


def _options(config: Config) -> Iterator[list[Config]]:
    """Configurations that need less and less memory, the cheapest change first.

    Within a list only the number of crops at once falls. From list to list the ZeRO stage rises,
    then more activations are recomputed; the last list has the network that keeps least.
    """
    train, ranks, model = config.train, config.cluster.world_size, config.model
    crops = train.batch_size // ranks
    divisors = [n for n in range(train.accumulation, crops + 1) if crops % n == 0]
    # With one rank a higher stage has nothing to divide, and stage 3 cannot be compiled.
    last_stage = 3 if ranks > 1 and not train.compile else train.zero_stage
    models: list[ModelConfig] = [model]
    if isinstance(model, SegResMambaFamily):
        recomputed = range(model.checkpoint_stages + 1, len(model.dims) + 1)
        models += [model.model_copy(update={"checkpoint_stages": n}) for n in recomputed]
    elif not getattr(model, "use_checkpoint", True):
        models.append(model.model_copy(update={"use_checkpoint": True}))
    for model in models:
        with_model = config.model_copy(update={"model": model})
        for stage in range(train.zero_stage, last_stage + 1):
            yield [
                _changed(with_model, "train", accumulation=accumulation, zero_stage=stage)
                for accumulation in divisors
            ]


def _patches(patch: tuple[int, int, int]) -> Iterator[tuple[int, int, int]]:
    """The patch, then smaller ones: the longest sides shrink first."""
    yield patch
    sides = list(patch)
    while (longest := max(sides)) > _PATCH_STEP:
        smaller = (longest - 1) // _PATCH_STEP * _PATCH_STEP
        sides = [smaller if side == longest else side for side in sides]
        yield sides[0], sides[1], sides[2]


def _changed(config: Config, section: str, **values: object) -> Config:
    changed = getattr(config, section).model_copy(update=values)
    return config.model_copy(update={section: changed})
