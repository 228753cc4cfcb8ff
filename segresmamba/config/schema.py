"""The whole configuration: its sections, and what they require of each other.

The larger sections have files of their own beside this one. The docstring under a field is its
help, which error messages show. Unknown keys are refused: a typo must never train another
experiment than the one that was asked for.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from segresmamba.config.augment import AugmentConfig
from segresmamba.config.cluster import ClusterConfig
from segresmamba.config.loss import LossConfig
from segresmamba.config.networks import ModelConfig, SegResMambaConfig, Size3
from segresmamba.config.section import Fraction, Section, one_line
from segresmamba.config.tracking import TrackingConfig
from segresmamba.config.train import TrainConfig
from segresmamba.errors import ConfigError
from segresmamba.secrets import hide_url

Region = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
# Kernels of convolutions and scans count elements in 32 bits.
_MOST_VOXELS = 2**31 - 1
_LARGEST_SEED = 2**64 - 1  # PyTorch's


class RunConfig(Section):
    """Where a run lives."""

    root: Path = Path("runs")
    """Folder that holds the folders of all runs."""
    # It becomes the name of a folder, so it has no slash and does not begin with a dot.
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder of the run below root: letters, digits, dots, hyphens and underscores, with a letter
    or a digit first. Unset, it is the name of the network and a digest of the settings: the same
    command then finds its run again, and other settings never overwrite it."""
    config_dir: Path | None = None
    """Folder with presets of your own, such as data/mine.yaml, which come before the package's. The
    option --config-dir sets it; unset, it is configs/ of the working folder if there is one."""
    own_presets: dict[str, str] = Field(default_factory=dict)
    """Files of the presets that are not the package's. It is recorded, not set."""
    allow_config_change: bool = False
    """Go on with a run although its settings have changed since its checkpoint was written."""

    @field_validator("root")
    @classmethod
    def _stays_on_its_line(cls, root: Path) -> Path:
        """The folder is in the batch script, as that of the log."""
        one_line(str(root), "run.root")
        return root


class DataConfig(Section):
    """What a network is trained on, and how it is read."""

    store: str = Field(min_length=1)
    """Converted dataset: the folder that `segresmamba convert` wrote, a .zip file of it, or a URL
    such as s3://bucket/store.zarr. A password or token in the URL is kept out of all files but
    secrets.json, which only you can read."""
    stage: str | None = Field(default=None, min_length=1)
    """Folder on each node to which the job's cases are copied once before training; unset, the
    store is read where it lies. $NAME stands for an environment variable of the node. Put it in
    quotes, as in 'data.stage=$SLURM_TMPDIR', so that the shell that submits leaves it alone."""
    patch: Size3
    """Size of a training crop in voxels, (D, H, W); also of the sliding window in validation."""
    foreground_fraction: Fraction = 1 / 3
    """Share of the crops that are centred on a labelled voxel. Over all batches of all ranks
    together this share is exact."""
    regions: Annotated[dict[str, Region], Field(min_length=1)] | None = None
    """Overlapping classes as unions of label values, such as {WT: [1, 2, 3], TC: [1, 3]}. They are
    trained with a sigmoid for each region. Unset, the labels are trained with a softmax."""
    crops_per_case: PositiveInt = 1
    """Crops from each case in one epoch."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Reader processes of each rank; 0 reads in the training process. For a store at a URL use 4 or
    more: readers then wait for the server most of the time."""
    prefetch: PositiveInt = 2
    """Batches that each reader prepares in advance."""
    patience_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 300.0
    """Seconds for which a request to a store at a URL is repeated while its server is overloaded,
    reports an error or cannot be reached, and for which a run that writes waits for a full disk or
    a file system that is away. After that the job ends as a passing fault (exit code 75)."""

    max_bad_cases: Annotated[int, Field(ge=0)] | None = None
    """How many cases of the store may be found damaged before a run stops. Until then other cases
    replace them, and they are named. Unset, it is 1 % of the cases, but at least 1 if the store has
    ten or more."""

    def bad_cases_allowed(self, cases: int) -> int:
        """How many of a store's cases may be damaged."""
        if self.max_bad_cases is not None:
            return self.max_bad_cases
        return max(1, cases // 100) if cases >= 10 else 0

    @field_validator("patch")
    @classmethod
    def _can_be_counted(cls, patch: Size3) -> Size3:
        if math.prod(patch) > _MOST_VOXELS:
            raise ConfigError(
                "a crop has more voxels than the operators can count",
                where="data.patch",
                got=list(patch),
                remedy=f"choose one with at most {_MOST_VOXELS} voxels, such as [128,128,128]",
            )
        return patch

    @field_validator("store")
    @classmethod
    def _without_secrets(cls, store: str) -> str:
        return hide_url(store)


class ValidationConfig(Section):
    """Sliding-window inference over whole volumes."""

    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Overlap of neighbouring windows, as a share of their size."""
    window_batch: PositiveInt = 1
    """Windows computed at once."""
    overlays: Annotated[int, Field(ge=0)] = 4
    """How many cases are drawn as overlay pictures: those with the lowest Dice. Unless it is 0, the
    median case is drawn too."""


class PlanConfig(Section):
    """Whether a training step fits the memory of the GPUs, see `segresmamba plan`."""

    gpu_memory_gib: PositiveFloat | None = None
    """Memory of one GPU in GiB. If it is set, `python -m launch train` predicts before it submits
    whether a step fits, and warns if not. On Slurm each job, also each trial of a sweep, checks
    the GPUs that it was given."""
    strict: bool = False
    """Refuse to submit or start a job that does not fit, instead of a warning."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> PlanConfig:
        if self.strict and self.gpu_memory_gib is None:
            raise ConfigError(
                "plan.strict needs the memory of a GPU",
                where="plan.gpu_memory_gib",
                got="nothing, with plan.strict=true",
                remedy="give the memory of one GPU in GiB, as in plan.gpu_memory_gib=40",
            )
        return self


class Config(Section):
    """All settings of one training run."""

    seed: Annotated[int, Field(ge=0, le=_LARGEST_SEED)] = 0
    """Seed of the weights, the crops and the augmentation."""
    run: RunConfig = RunConfig()
    """Where the run lives."""
    data: DataConfig
    """What the network is trained on."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes of a training batch."""
    model: ModelConfig = SegResMambaConfig()
    """The network."""
    loss: LossConfig = LossConfig()
    """What is minimised."""
    train: TrainConfig = TrainConfig()
    """Optimisation, and how often a run records, validates and saves."""
    validation: ValidationConfig = ValidationConfig()
    """Sliding-window inference over whole volumes."""
    tracking: TrackingConfig = TrackingConfig()
    """Where metrics go, and what is measured besides them."""
    cluster: ClusterConfig = ClusterConfig()
    """Where the job runs."""
    plan: PlanConfig = PlanConfig()
    """Whether a training step fits the memory of the GPUs."""

    @model_validator(mode="after")
    def _patience_is_no_hang(self) -> Config:
        timeout_s, patience_s = self.train.hang_timeout_s, self.data.patience_s
        if timeout_s and timeout_s <= patience_s:
            raise ConfigError(
                "a rank that waits for a disk or a server would be taken for one that hangs",
                where="train.hang_timeout_s",
                got=f"{timeout_s:g}, with data.patience_s={patience_s:g}",
                remedy=f"give a train.hang_timeout_s above {patience_s:g}, or less data.patience_s",
            )
        return self

    @model_validator(mode="after")
    def _ranks_divide_batch(self) -> Config:
        # Every rank reads the same number of crops for each of its backward passes.
        shares = self.cluster.world_size * self.train.accumulation
        if self.train.batch_size % shares:
            raise ConfigError(
                "the batch cannot be divided evenly among ranks and accumulation steps",
                where="train.batch_size",
                got=f"{self.train.batch_size}, with {self.cluster.nodes} x "
                f"{self.cluster.tasks_per_node} ranks (cluster.nodes x cluster.tasks_per_node) "
                f"and train.accumulation={self.train.accumulation}",
                remedy=f"give a multiple of {shares}, such as train.batch_size="
                f"{shares * max(1, round(self.train.batch_size / shares))}",
            )
        return self
