"""DeepSpeed ZeRO behind one small class. The only module that imports deepspeed.

A step whose loss or gradient is not finite on any rank changes neither weights nor optimizer state.
No exchange between the ranks is added for that: a broken loss makes its whole gradient nan, the
reduction of the gradients carries the nan to every rank, and so all of them see the same norm. The
host does not wait for that norm: at stage 0 AdamW's kernel skips by itself, and the other stages of
DeepSpeed read one number a step.

Which of DeepSpeed's undocumented attributes this package uses is listed, and tested, in
tests/engine/test_deepspeed.py.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from segresmamba.config import Config, TrainConfig
from segresmamba.engine.adamw import EagerAdamW
from segresmamba.engine.distributed import micro_batch, wait_as_long_in_all_groups
from segresmamba.engine.sharding import ShardedState
from segresmamba.engine.unreached import UnreachedWeights
from segresmamba.task.precision import (
    Autocast,
    LossScaler,
    poison,
    set_gpu_arithmetic,
    spare_small_maps,
)
from segresmamba.task.ranks import Ranks

# World sizes at which stages 1 and 2 reduce each part of a bucket to the rank that owns it, and not
# the whole to all ranks: half the bytes, but a call for each rank. On two ranks gloo's reduction
# saves nothing; on more than 64 the calls take longer than the bytes, see docs/scaling.md.
_REDUCED_TO_OWNERS = range(3, 65)

# No weight decay for norms and biases, which have one axis, nor for the scan's A_log, D and step
# bias: they should not be pulled to zero. Mamba's reference code excludes the scan's too.
_NO_DECAY = ("A_log", "D_K", "dt_bias", "conv_bias")


def deepspeed_config(config: Config, world_size: int) -> dict[str, Any]:
    """The DeepSpeed configuration of a run: a pure function of its config and world size.

    It says nothing of precision: DeepSpeed sees fp32 parameters and gradients in every run, see
    `task.precision`.

    Raises:
        ConfigError: If the world size does not divide the batch.
    """
    train = config.train
    # It takes a second bucket, and stage 0 reduces after the backward pass in any case.
    overlaps = train.overlap_comm and train.zero_stage > 0 and world_size > 1
    return {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": micro_batch(config, world_size),
        "gradient_accumulation_steps": train.accumulation,
        # At stage 0 the engine here clips, in the same kernel that skips.
        "gradient_clipping": train.clip_norm if train.zero_stage else 0.0,
        # DeepSpeed's default bucket takes 2 GB of the device, several times the network's weights.
        "zero_optimization": {
            "stage": train.zero_stage,
            "reduce_bucket_size": 1 << 25,
            "overlap_comm": overlaps,
            # Where it overlaps, DeepSpeed waits for the device before each reduction to one rank.
            "use_multi_rank_bucket_allreduce": overlaps or world_size not in _REDUCED_TO_OWNERS,
        },
        "communication_data_type": train.reduce_dtype,
        "zero_allow_untested_optimizer": True,  # it knows optimizers by their exact class
        "steps_per_print": 2**62,  # metrics go through the tracker
        # This timer, on by default, waits for the device twice in every backward pass.
        "timers": {"throughput": {"enabled": False}},
    }


class ZeroEngine:
    """A network whose optimizer state, gradients and parameters ZeRO divides among the ranks.

    Args:
        network: The network, with the same initial weights on every rank.
        config: The run's configuration.
        ranks: This process; it has joined the process group.
        loaded: Names of the weights that learn with `train.loaded_lr_factor`.
    """

    def __init__(
        self,
        network: nn.Module,
        config: Config,
        ranks: Ranks,
        loaded: Collection[str] = (),
    ) -> None:
        deepspeed = import_deepspeed(ranks)
        if ranks.device.type == "cuda":
            set_gpu_arithmetic(config.train)
        elif config.train.precision == "bf16":
            spare_small_maps(network)
        self._ranks = ranks
        self.network = network.to(ranks.device)
        self.sizes = {name: weight.numel() for name, weight in network.named_parameters()}
        """Elements of each whole parameter. Under stage 3 `numel` is 0 later on."""
        self.gradient_norm = torch.zeros((), device=ranks.device)
        """Norm of the last step's gradient before clipping, float32 (), on the device."""
        self._unreached = UnreachedWeights(network)
        fp16 = config.train.precision == "fp16"
        self.scaler = LossScaler(network, ranks.device) if fp16 else None
        """This rank's loss scale; None unless the precision is fp16."""
        self._sharded_weights = config.train.zero_stage == 3
        self._whole_gradient = config.train.zero_stage == 0
        self._clip_norm = config.train.clip_norm
        self._gathered = deepspeed.zero.GatheredParameters
        if config.train.compile:
            network.compile()
        with _environment_for_deepspeed(ranks):
            # PyTorch's AdamW: DeepSpeed would have to compile its own. All weights in one kernel.
            groups = _parameter_groups(network, config.train, loaded)
            self._engine, *_ = deepspeed.initialize(
                model=Autocast(network, config.train.precision),
                optimizer=EagerAdamW(groups, lr=config.train.lr, fused=True),
                config=deepspeed_config(config, ranks.world_size),
            )
        wait_as_long_in_all_groups()
        if config.train.zero_stage == 0 and ranks.world_size == 1:
            # It would copy the whole gradient to a buffer and back.
            self._engine.enable_backward_allreduce = False
        if config.train.zero_stage in {1, 2}:
            # DeepSpeed's own reads the norm once more for each group of weights.
            self._engine.optimizer.unscale_and_clip_grads = self._clip
        self.state = ShardedState(network, self._engine, config.train.zero_stage, ranks)
        """Weights and optimizer state, as this rank holds them."""

    def forward(self, x_BCDHW: Tensor) -> Tensor | list[Tensor]:
        """The network's logits in training mode, under the configured autocast."""
        self._engine.train()
        with _environment_for_deepspeed(self._ranks):  # stage 3 compares what the ranks run
            logits: Tensor | list[Tensor] = self._engine(x_BCDHW)
        return logits

    def backward(self, loss: Tensor, lr: float) -> None:
        """Accumulate the gradient; at the accumulation boundary reduce it and step with `lr`.

        After a boundary `gradient_norm` says whether the step was made: it was if that is finite.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        boundary = self._engine.is_gradient_accumulation_boundary()
        loss = loss * poison(loss)
        self._engine.backward(self.scaler.scaled(loss) if self.scaler else loss)
        if boundary and self._whole_gradient:
            # Stage 0 does not keep the norm, but here each rank has the whole gradient.
            gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
            self.gradient_norm = nn.utils.get_total_norm(gradients)
            # The fused kernel divides the gradient by the one, and does nothing if the other is 1.
            adamw = self._engine.optimizer
            adamw.grad_scale = ((self.gradient_norm + 1e-6) / self._clip_norm).clamp(min=1)
            adamw.found_inf = (~self.gradient_norm.isfinite()).float()
        self.state.wait_for_copy()
        self._engine.step()
        if boundary:
            self._unreached.warn()
            if not self._whole_gradient:
                norm = self._engine.get_global_grad_norm()
                self.gradient_norm = torch.as_tensor(norm, device=self.gradient_norm.device)
            if self.scaler:
                self.scaler.update(made=self.gradient_norm.isfinite())

    def _clip(self, gradients: Sequence[Tensor], norm: Tensor) -> None:
        """Clip this rank's part of the gradient, whose norm is finite."""
        for gradient in gradients:
            gradient.mul_((self._clip_norm / (norm + 1e-6)).clamp(max=1))

    def buffers(self) -> dict[str, Tensor]:
        """A copy of the network's buffers, on the CPU."""
        kept = self.network.state_dict()
        return {
            name: value.to("cpu", copy=True)
            for name, value in kept.items()
            if name not in self.sizes
        }

    def weights(self) -> dict[str, Tensor]:
        """All weights in full, on the CPU of every rank (collective)."""
        with self._gathered(list(self.network.parameters()), enabled=self._sharded_weights):
            clones: dict[object, Tensor] = {}
            weights = {}
            for name, value in self.network.state_dict().items():
                place = (value.data_ptr(), value.shape)  # some libraries name a tensor twice
                if place not in clones:
                    clones[place] = value.detach().cpu().clone()
                weights[name] = clones[place]
            return weights


def import_deepspeed(ranks: Ranks) -> Any:
    """Import DeepSpeed for this device, without its log messages and builds of extensions."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Its autotuner, which we do not use, imports mlflow if there is one. That takes every rank over
    # a second of processor time at each start. None makes the import fail as if there were none.
    hide = "mlflow" not in sys.modules
    if hide:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        with _environment_for_deepspeed(ranks):
            import deepspeed
    finally:
        if hide:
            del sys.modules["mlflow"]

    deepspeed.utils.logger.setLevel(logging.ERROR)
    if ranks.device.type == "cpu":
        # Otherwise it looks for compilers and builds a shared-memory all-reduce at first use. That
        # takes over a minute, and tools that the machine may not have. Gloo does the same.
        deepspeed.ops.__compatible_ops__ = {}
    kind = ranks.device.type
    module: Any = import_module(f"deepspeed.accelerator.{kind}_accelerator")
    if deepspeed.accelerator.get_accelerator().device_name() != kind:  # imported earlier
        deepspeed.accelerator.set_accelerator(getattr(module, f"{kind.upper()}_Accelerator")())
    if kind == "cuda":
        # With NVML, stages 1 and 2 read CUDA_VISIBLE_DEVICES as numbers: UUIDs would end the run.
        module.pynvml = None
    with _environment_for_deepspeed(ranks):
        deepspeed.init_distributed(
            dist_backend=ranks.backend, auto_mpi_discovery=False, verbose=False
        )
    return deepspeed


@contextmanager
def _environment_for_deepspeed(ranks: Ranks) -> Iterator[None]:
    """The variables from which DeepSpeed learns its device; afterwards they are as they were.

    A rank that sees only its own GPU computes on number 0, whatever LOCAL_RANK is, and a
    DS_ACCELERATOR of the user's shell must not move a network to another device.
    """
    number = ranks.local_rank if ranks.device.index is None else ranks.device.index
    values = {"DS_ACCELERATOR": ranks.device.type, "LOCAL_RANK": str(number)}
    before = {name: os.environ.get(name) for name in values}
    os.environ |= values
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _parameter_groups(
    network: nn.Module, train: TrainConfig, loaded: Collection[str] = ()
) -> list[dict[str, Any]]:
    """The trained weights by weight decay (matrices and kernels have it) and learning rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        is_spared = parameter.ndim < 2 or name.rpartition(".")[2].startswith(_NO_DECAY)
        decay = 0.0 if is_spared else train.weight_decay
        factor = train.loaded_lr_factor if name in loaded else 1.0
        if parameter.requires_grad:
            groups.setdefault((decay, factor), []).append(parameter)
    # AdamW leaves the factor in its groups alone; `ZeroEngine.backward` applies it.
    return [
        {"params": parameters, "weight_decay": decay, "lr_factor": factor}
        for (decay, factor), parameters in sorted(groups.items(), key=itemgetter(0), reverse=True)
    ]
