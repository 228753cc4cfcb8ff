"""Will a training step fit, and if not, what is the cheapest change that makes it fit?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from segresmamba.config import Config, ModelConfig
from segresmamba.config.networks import SegResMambaFamily
from segresmamba.errors import ConfigError
from segresmamba.planner.simulation import Activations, simulate
from segresmamba.planner.states import states
from segresmamba.task.task import Task

GIB = 2**30
# Neither is measured: no GPU was at hand. A context and its libraries take several hundred MiB, and
# convolutions take workspaces that shapes do not show.
CONTEXT_GIB = 1.0
WORKSPACE_MARGIN = 0.10
_PATCH_STEP = 32  # what the strides of the networks here divide
_LAST_STAGE = 3


@dataclass(frozen=True)
class Prediction:
    """One configuration and the memory of its training step on one GPU."""

    config: Config
    micro_batch: int
    activations: Activations

    @property
    def peak_bytes(self) -> int:
        """The most that tensors take at once."""
        held = states(
            self.config.train.zero_stage,
            self.activations.weights_bytes,
            self.config.cluster.world_size,
        )
        return max(held.in_backward + self.activations.peak_bytes, held.in_step)

    @property
    def needed_gib(self) -> float:
        """Memory that the GPU should have: tensors, workspaces and context."""
        return self.peak_bytes / GIB * (1 + WORKSPACE_MARGIN) + CONTEXT_GIB


@dataclass(frozen=True)
class MemoryPlan:
    """The configuration as it is, and the one that fits."""

    gpu_memory_gib: float
    asked: Prediction
    proposed: Prediction

    @property
    def fits(self) -> bool:
        """Whether nothing needs to change."""
        return self.asked.needed_gib <= self.gpu_memory_gib

    @property
    def words(self) -> tuple[str, ...]:
        """The changes, as `train` takes them."""
        before, after = self.asked.config, self.proposed.config
        words = []
        if after.data.patch != before.data.patch:
            words.append(f"data.patch=[{','.join(map(str, after.data.patch))}]")
        words += [
            f"train.{key}={getattr(after.train, key)}"
            for key in ("accumulation", "zero_stage")
            if getattr(after.train, key) != getattr(before.train, key)
        ]
        model = before.model.model_dump()
        words += [
            f"model.{key}={str(value).lower()}"
            for key, value in after.model.model_dump().items()
            if value != model[key]
        ]
        return tuple(words)


class Planner:
    """Predicts configurations of one task, each simulation once.

    Args:
        task: The dataset's channels and labels, and the configuration to start from.
    """

    def __init__(self, task: Task) -> None:
        self.config = task.config
        self._channels, self._labels = len(task.dataset.channel_names), task.dataset.labels
        self._seen: dict[tuple[str, tuple[int, int, int], int], Activations] = {}

    def predict(self, config: Config) -> Prediction:
        """The memory of a training step as configured, on each of its ranks."""
        train = config.train
        crops = train.batch_size // (config.cluster.world_size * train.accumulation)
        key = (config.model.model_dump_json(), config.data.patch, crops)
        if key not in self._seen:
            self._seen[key] = simulate(config, self._channels, self._labels, crops, "cuda")
        return Prediction(config, crops, self._seen[key])

    def plan(self, gpu_memory_gib: float) -> MemoryPlan:
        """Find the change that costs least: smaller micro batches first, the patch last.

        Raises:
            ConfigError: If not even the smallest patch fits.
        """
        asked = self.predict(self.config)
        if asked.needed_gib <= gpu_memory_gib:
            return MemoryPlan(gpu_memory_gib, asked, asked)
        for patch in _patches(self.config.data.patch):
            options = list(_options(_changed(self.config, "data", patch=patch)))
            try:
                leanest = self._leanest(options)
            except ConfigError:  # the network does not take a patch as small as this
                break
            if leanest.needed_gib > gpu_memory_gib:
                continue
            # Simulations take time: one crop at a time tells whether more are worth a look.
            found = (
                self.predict(option)
                for ever_fewer_crops in options
                if self.predict(ever_fewer_crops[-1]).needed_gib <= gpu_memory_gib
                for option in ever_fewer_crops
            )
            fitting = next(one for one in found if one.needed_gib <= gpu_memory_gib)
            return MemoryPlan(gpu_memory_gib, asked, fitting)
        raise ConfigError(
            "no training step of this network fits",
            where="plan.gpu_memory_gib",
            got=f"{gpu_memory_gib:g}; the smallest tried needs {leanest.needed_gib:.1f} GiB, with "
            f"data.patch={list(leanest.config.data.patch)}, one crop at a time and all that saves "
            "memory",
            remedy="take more or larger GPUs, fewer model channels, or another model",
        )

    def _leanest(self, options: list[list[Config]]) -> Prediction:
        """One crop at a time in the network that keeps least, under the best of the ZeRO stages.

        A higher one is not always leaner: its buffers may take more than a small network's states.
        """
        network = options[-1][-1].model
        fewest = [option[-1] for option in options if option[-1].model == network]
        return min(map(self.predict, fewest), key=lambda prediction: prediction.needed_gib)


def gpu_memory_gib(config: Config) -> float:
    """Of `plan.gpu_memory_gib`, else of the GPU at hand.

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
    """The same step with less and less memory, cheapest change first; the leanest network is last.

    Each list has fewer and fewer crops at once, and all else the same.
    """
    train, ranks = config.train, config.cluster.world_size
    crops = train.batch_size // ranks
    divisors = [n for n in range(train.accumulation, crops + 1) if crops % n == 0]
    last = _LAST_STAGE if ranks > 1 and not train.compile else train.zero_stage
    for model in _models(config):
        for stage in range(train.zero_stage, max(train.zero_stage, last) + 1):
            with_model = config.model_copy(update={"model": model})
            yield [
                _changed(with_model, "train", accumulation=accumulation, zero_stage=stage)
                for accumulation in divisors
            ]


def _models(config: Config) -> Iterator[ModelConfig]:
    """The network, then the same with more and more activations computed twice."""
    model = config.model
    yield model
    if isinstance(model, SegResMambaFamily):
        for stages in range(model.checkpoint_stages + 1, len(model.dims) + 1):
            yield model.model_copy(update={"checkpoint_stages": stages})
    elif not getattr(model, "use_checkpoint", True):
        yield model.model_copy(update={"use_checkpoint": True})


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
