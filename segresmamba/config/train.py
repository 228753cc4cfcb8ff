"""The settings of training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from segresmamba.config.section import Fraction, Section
from segresmamba.errors import ConfigError


class TrainConfig(Section):
    """Optimisation, precision, and how often a run records, validates and saves."""

    max_steps: PositiveInt = 1000
    """Optimizer steps of the whole training, unless train.epochs is set."""
    epochs: PositiveInt | None = None
    """Length of the training in epochs, in the place of train.max_steps. An epoch has
    data.crops_per_case crops of each training case; the log says how many steps that are."""
    patience: PositiveInt | None = None
    """End the run after so many validations, one after the other, without a better mean Dice.
    Needs train.validate_every. The learning rate still falls as if the run went on to its end."""
    batch_size: PositiveInt = 2
    """Crops in one optimizer step, over all ranks and accumulation steps together."""
    accumulation: PositiveInt = 1
    """Backward passes in one optimizer step. More of them need less memory: each has a smaller
    part of the batch."""
    fold: Annotated[int, Field(ge=0)] | None = 0
    """Number of the fold that is held out for validation; the store holds the split. none: all
    cases train, nothing is validated, and the last weights count as the best.
    `python -m launch train train.fold=all` trains a run for each fold."""
    init_from: Path | None = None
    """Start from these weights: the folder of a run, a model folder of `segresmamba export`, or a
    file with a state dict. Weights whose name and shape fit are taken. If the number of input
    channels differs, the first layer is adapted; what else differs starts fresh, and the log names
    it. A run that has a checkpoint of its own goes on from that."""
    freeze: tuple[str, ...] = ()
    """Parts of the network that are not trained, such as [downs, blocks.0]: all weights whose name
    begins with one of these."""
    loaded_lr_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate of the weights that were taken from train.init_from."""
    lr: PositiveFloat = 1e-4
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    """Weight decay of AdamW."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rate rises linearly to its peak."""
    schedule: Literal["cosine", "polynomial", "constant"] = "cosine"
    """How the learning rate falls after the warm-up. cosine and polynomial (power 0.9) reach zero
    at max_steps."""
    clip_norm: PositiveFloat = 12.0
    """Largest norm of the gradient; a longer one is scaled down to it."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """What each rank computes on. auto: its GPU, or the CPU where there is none. A job that was
    granted GPUs, or asks for them, is refused where torch sees none, unless this says cpu."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of autocast. The parameters are fp32 with each of them."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """DeepSpeed ZeRO stage: what the ranks divide among them. 0: nothing; 1: optimizer states; 2:
    also gradients; 3: also parameters."""
    overlap_comm: bool = True
    """From train.zero_stage=1 on, reduce the gradients of several ranks while the backward pass
    still runs. It takes another 128 MiB of the device. false, on 3 to 64 ranks at stages 1 and 2,
    sends a third less: better where sending the weights once takes longer than a backward pass."""
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    """Number format in which ranks add up their gradients. bf16 halves what they send, and rounds
    each gradient to 8 bits."""
    tf32: bool = True
    """On a GPU, multiply fp32 numbers in TF32, which is several times faster and rounds them to 11
    bits. Only layers that compute in fp32 are affected: all of them with train.precision=fp32."""
    channels_last: bool | None = None
    """Keep the channels of a voxel together in memory for convolutions (channels_last_3d). The
    results are the same up to rounding; it is faster on some devices and slower on others. Unset, a
    run on a GPU measures both before its first step, and a run on a CPU does not."""
    compile: bool = False
    """Compile the network with torch.compile for training. It takes a minute or more at the first
    step, and needs a C++ compiler and a train.zero_stage below 3."""
    log_every: PositiveInt = 10
    """Steps between two records of metrics."""
    validate_every: PositiveInt | None = None
    """Steps between two validations on the held-out fold; unset, there is one at the end."""
    checkpoint_every: PositiveInt = 500
    """Steps between two checkpoints; one is always written at the end."""
    keep_last: PositiveInt = 2
    """How many checkpoints are kept, besides the best weights."""
    max_skipped_in_a_row: Annotated[int, Field(ge=0)] = 10
    """Steps that may be skipped one after another because the loss or a gradient is not a finite
    number; one more ends the run. 0 ends it at the first."""
    max_skipped_share: Fraction = 0.01
    """Share of all steps so far that may be skipped, once they are more than
    max_skipped_in_a_row."""
    hang_timeout_s: Annotated[float, Field(ge=0)] | None = 1800.0
    """Seconds without a step, a window of a validation, or a save, after which a rank writes the
    stacks of its threads to the log and ends the job, for Slurm to queue it again. 0 or null: it is
    never ended. Ranks wait for each other: no case may take one of them longer to validate."""
    threads: PositiveInt | None = None
    """CPU threads of each rank; unset, the ranks of a node share its cores."""

    @field_validator("fold", mode="before")
    @classmethod
    def _none_is_a_word(cls, fold: object) -> object:
        """`train.fold=none` reads better than null, which YAML has for it."""
        return None if fold == "none" else fold

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.epochs is None:
            self._check_warmup(self.max_steps)
        if self.patience and (self.validate_every is None or self.fold is None):
            missing = "validate_every" if self.validate_every is None else "fold"
            raise ConfigError(
                "patience counts validations, and this run has none before its end",
                where="train.patience",
                got=f"{self.patience}, with train.{missing}={getattr(self, missing)}",
                remedy="set train.validate_every and hold out a fold, or leave train.patience out",
            )
        if self.loaded_lr_factor < 1 and self.init_from is None:
            raise ConfigError(
                "no weights are loaded that could have a lower learning rate",
                where="train.loaded_lr_factor",
                got=f"{self.loaded_lr_factor}, without train.init_from",
                remedy="give train.init_from=MODEL too, or leave train.loaded_lr_factor out",
            )
        if self.compile and self.zero_stage == 3:
            raise ConfigError(
                "a network whose parameters are sharded cannot be compiled",
                where="train.compile",
                got="true, with train.zero_stage=3",
                remedy="give train.zero_stage=2, or train.compile=false",
            )
        return self

    def with_steps(self, crops: int) -> TrainConfig:
        """These settings with the `max_steps` that `epochs` stands for, if it is set.

        Args:
            crops: Training crops in one epoch.

        Raises:
            ConfigError: If the warm-up is longer than that.
        """
        if self.epochs is None:
            return self
        steps = math.ceil(self.epochs * crops / self.batch_size)
        self._check_warmup(steps)
        return self.model_copy(update={"max_steps": steps})

    def _check_warmup(self, max_steps: int) -> None:
        if self.warmup_steps >= max_steps:
            key = "train.max_steps" if self.epochs is None else "train.epochs"
            raise ConfigError(
                "the warm-up is longer than the training",
                where="train.warmup_steps",
                got=f"{self.warmup_steps}, with train.max_steps={max_steps}",
                remedy=f"give a train.warmup_steps below {max_steps}, or more {key}",
            )
