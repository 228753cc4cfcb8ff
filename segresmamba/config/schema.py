"""Every setting there is, with its type, default and meaning.

The docstring under a field is its help. Unknown keys are refused: a typo must never train a
different experiment than the one asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from segresmamba.config.networks import ModelConfig, SegResMambaConfig
from segresmamba.config.section import Section
from segresmamba.config.tracking import TrackingConfig
from segresmamba.errors import ConfigError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Size3 = tuple[PositiveInt, PositiveInt, PositiveInt]


class RunConfig(Section):
    """Where a run lives."""

    root: Path = Path("runs")
    """Folder that holds one folder per run."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder of the run below root. Default: model name and a digest of the configuration, so the
    same command finds its run again and another configuration never overwrites it."""
    allow_config_change: bool = False
    """Go on with a run whose settings were others when its checkpoint was written."""


class DataConfig(Section):
    """What is trained on and how it is read."""

    store: str = Field(min_length=1)
    """Converted dataset: the folder that `segresmamba convert` wrote, a .zip file of it, or a URL,
    such as s3://bucket/store.zarr."""
    stage: str | None = Field(default=None, min_length=1)
    """Folder on each node to copy the job's cases to, once, before training; unset reads the store
    where it lies. $NAME stands for an environment variable of the node: 'data.stage=$SLURM_TMPDIR',
    in quotes, since the shell that submits does not know it."""
    patch: Size3
    """Size of a training crop in voxels, (D, H, W); also the sliding window of validation."""
    foreground_fraction: Fraction = 1 / 3
    """Share of crops centred on a labelled voxel, exact over the global batch sequence."""
    regions: dict[str, tuple[PositiveInt, ...]] | None = None
    """Overlapping classes as unions of label values, such as {WT: [1, 2, 3], TC: [1, 3]}. Set, they
    are trained with a sigmoid per region; unset, the labels are trained with a softmax."""
    crops_per_case: PositiveInt = 1
    """Crops drawn from each case in one epoch."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Reader processes per rank; 0 reads in the training process. A store behind a URL wants 4 or
    more: they wait for the server most of the time."""
    prefetch: PositiveInt = 2
    """Batches that each reader prepares ahead."""


class AugmentConfig(Section):
    """Random changes of a training batch, made on the training device.

    Each probability is per sample; 0 switches the change off.
    """

    flip_probability: Fraction = 0.5
    """Mirror along an axis, drawn for each of the three axes."""
    affine_probability: Fraction = 0.2
    """Rotate and scale."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    """Largest rotation about each axis."""
    scale_range: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Largest relative change of size."""
    intensity_scale_probability: Fraction = 0.5
    """Multiply a channel by 1 + s."""
    intensity_scale_range: Annotated[float, Field(ge=0)] = 0.1
    """Largest |s|."""
    intensity_shift_probability: Fraction = 0.5
    """Add an offset to a channel, in standard deviations."""
    intensity_shift_range: Annotated[float, Field(ge=0)] = 0.1
    """Largest offset."""
    noise_probability: Fraction = 0.15
    """Add Gaussian noise."""
    noise_std: Annotated[float, Field(ge=0)] = 0.1
    """Largest standard deviation of the noise, in standard deviations of the image."""
    gamma_probability: Fraction = 0.15
    """Apply a gamma curve to the intensity range of a channel."""
    gamma_range: tuple[PositiveFloat, PositiveFloat] = (0.7, 1.5)
    """Smallest and largest exponent."""


class TrainConfig(Section):
    """Optimisation, precision, and how often things happen."""

    max_steps: PositiveInt = 1000
    """Optimizer steps in all."""
    batch_size: PositiveInt = 2
    """Crops per optimizer step, over all ranks and accumulation steps together."""
    accumulation: PositiveInt = 1
    """Backward passes per optimizer step."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Fold of the store's split that is held out."""
    lr: PositiveFloat = 1e-4
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    """AdamW weight decay."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "polynomial", "constant"] = "cosine"
    """Decay after the warm-up, down to zero at max_steps (polynomial: power 0.9)."""
    clip_norm: PositiveFloat = 12.0
    """Largest norm of the gradient."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type; parameters stay fp32 in every case."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """DeepSpeed ZeRO stage: 1 shards optimizer states, 2 also gradients, 3 also parameters."""
    channels_last: bool = False
    """Run convolutions with the channels of a voxel together in memory (channels_last_3d): the same
    results, faster on some devices and slower on others."""
    compile: bool = False
    """Compile the network with torch.compile for training, which takes a minute or more at the
    first step. Needs a C++ compiler, and a train.zero_stage below 3."""
    log_every: PositiveInt = 10
    """Steps between metric records."""
    validate_every: PositiveInt | None = None
    """Steps between validations on the held-out fold; unset validates once, at the end."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints; one is always written at the end."""
    keep_last: PositiveInt = 2
    """Checkpoints kept, besides the best weights."""
    threads: PositiveInt | None = None
    """CPU threads per rank; unset shares the cores of the node among its ranks."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.warmup_steps >= self.max_steps:
            raise ConfigError(
                "the warm-up is longer than the training",
                where="train.warmup_steps",
                got=f"{self.warmup_steps}, with train.max_steps={self.max_steps}",
                remedy=f"give a train.warmup_steps below {self.max_steps}, or more train.max_steps",
            )
        if self.compile and self.zero_stage == 3:
            raise ConfigError(
                "a network whose parameters are sharded cannot be compiled",
                where="train.compile",
                got="true, with train.zero_stage=3",
                remedy="give train.zero_stage=2, or train.compile=false",
            )
        return self


class ValidationConfig(Section):
    """Sliding-window inference over whole volumes."""

    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Overlap of neighbouring windows."""
    window_batch: PositiveInt = 1
    """Windows computed at once."""
    overlays: Annotated[int, Field(ge=0)] = 4
    """Cases drawn as overlay pictures: those of the lowest Dice."""


class ClusterConfig(Section):
    """Where `python -m launch` runs a job."""

    name: Literal["local", "debug", "slurm"] = "local"
    """local: processes on this machine; debug: in this process; slurm: sbatch."""
    nodes: PositiveInt = 1
    """Nodes."""
    tasks_per_node: PositiveInt = 1
    """Processes (ranks) per node: one per GPU where there are GPUs."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    """GPUs that Slurm is asked for on each node. Without Slurm, ranks see what the shell sees."""
    cpus_per_task: PositiveInt = 2
    """CPU cores that Slurm is asked for per rank, readers included."""
    memory_gib: PositiveInt | None = None
    """Host memory per node; unset leaves it to the partition's default."""
    time_min: PositiveInt | None = None
    """Time limit; Slurm needs one. A job that reaches it saves a checkpoint and is queued again."""
    signal_delay_s: PositiveInt = 120
    """Warning time before the limit, for that checkpoint."""
    partition: str | None = None
    """Slurm partition; unset takes the cluster's default."""
    account: str | None = None
    """Slurm account to charge."""
    constraint: str | None = None
    """Slurm node features, such as h100."""
    qos: str | None = None
    """Slurm quality of service."""
    exclude: str | None = None
    """Slurm nodes to avoid, such as gpu[07-08]."""
    setup: tuple[str, ...] = ()
    """Shell lines before a Slurm job, such as `module load cuda`."""
    srun: tuple[str, ...] = ("--cpu-bind=cores",)
    """Further options of the srun that starts the ranks, such as --gpu-bind=closest."""
    interface: str | None = None
    """Network interface between the nodes, such as ib0, for NCCL and gloo."""
    env: dict[str, str | int] = Field(default_factory=dict)
    """Environment of the ranks, such as {NCCL_DEBUG: INFO, NCCL_IB_HCA: mlx5_0}."""
    retries: Annotated[int, Field(ge=0)] = 2
    """How often a Slurm job whose rank failed is queued again without having written a newer
    checkpoint. Preemption and time limit do not count; a mistake in the settings ends it at once.
    """

    @property
    def world_size(self) -> int:
        """Ranks of a job."""
        return self.nodes * self.tasks_per_node

    @property
    def variables(self) -> dict[str, str]:
        """The ranks' environment, the network interface included."""
        names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if self.interface else ()
        chosen = {name: str(self.interface) for name in names}
        return chosen | {name: str(value) for name, value in self.env.items()}

    @model_validator(mode="after")
    def _possible(self) -> ClusterConfig:
        most = {"local": (1, self.tasks_per_node), "debug": (1, 1)}.get(self.name)
        if most and (self.nodes, self.tasks_per_node) != most:
            raise ConfigError(
                f"cluster={self.name} has no place for that many ranks",
                where="cluster.nodes, cluster.tasks_per_node",
                got=f"{self.nodes}, {self.tasks_per_node}",
                remedy="local runs on one node, debug in one process; cluster=slurm on many",
            )
        if self.name == "slurm" and self.time_min is None:
            raise ConfigError(
                "a Slurm job needs a time limit",
                where="cluster.time_min",
                got="nothing",
                remedy="give minutes, as in cluster.time_min=60",
            )
        if self.time_min and self.signal_delay_s >= 60 * self.time_min:
            raise ConfigError(
                "the warning before the time limit is longer than the limit",
                where="cluster.signal_delay_s",
                got=f"{self.signal_delay_s}, with cluster.time_min={self.time_min}",
                remedy=f"give a cluster.signal_delay_s below {60 * self.time_min}",
            )
        return self


class PlanConfig(Section):
    """Whether a training step fits the GPUs, see `segresmamba plan`."""

    gpu_memory_gib: PositiveFloat | None = None
    """Memory of one GPU. Set, `python -m launch train` predicts before it submits whether a step
    fits, and warns if not. On Slurm each job, a sweep's trial too, asks it of the GPUs it got."""
    strict: bool = False
    """Refuse to submit or start what does not fit."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> PlanConfig:
        if self.strict and self.gpu_memory_gib is None:
            raise ConfigError(
                "what does not fit cannot be refused: the memory of the GPUs is not given",
                where="plan.gpu_memory_gib",
                got="nothing, with plan.strict=true",
                remedy="give the GiB of one GPU, as in plan.gpu_memory_gib=40",
            )
        return self


class Config(Section):
    """One training run, completely."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the weights, the crops and the augmentation."""
    run: RunConfig = RunConfig()
    """Where the run lives."""
    data: DataConfig
    """What is trained on."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes of a batch."""
    model: ModelConfig = SegResMambaConfig()
    """The network."""
    train: TrainConfig = TrainConfig()
    """Optimisation."""
    validation: ValidationConfig = ValidationConfig()
    """Whole-volume inference."""
    tracking: TrackingConfig = TrackingConfig()
    """Journal, MLflow, energy."""
    cluster: ClusterConfig = ClusterConfig()
    """Where the job runs."""
    plan: PlanConfig = PlanConfig()
    """Memory of the GPUs."""

    @model_validator(mode="after")
    def _ranks_divide_batch(self) -> Config:
        shares = self.cluster.world_size * self.train.accumulation
        if self.train.batch_size % shares:
            raise ConfigError(
                "the batch cannot be shared out evenly",
                where="train.batch_size",
                got=f"{self.train.batch_size}, with {self.cluster.nodes} x "
                f"{self.cluster.tasks_per_node} ranks (cluster.nodes x cluster.tasks_per_node) "
                f"and train.accumulation={self.train.accumulation}",
                remedy=f"give a multiple of {shares}, such as train.batch_size="
                f"{shares * max(1, round(self.train.batch_size / shares))}",
            )
        return self
