"""Every setting, with its type, default and meaning.

The docstring under a field is its help, which error messages show. Unknown keys are refused: a
typo must never train another experiment than the one that was asked for.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from segresmamba.config.networks import ModelConfig, SegResMambaConfig, Size3
from segresmamba.config.section import Section, Target, one_line
from segresmamba.config.slurm_values import minutes, sbatch_options
from segresmamba.config.tracking import TrackingConfig
from segresmamba.errors import ConfigError
from segresmamba.secrets import hide_lines, hide_url, hide_variables

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
LowerShare = Annotated[float, Field(gt=0.0, le=1.0)]
Axes = tuple[Literal["D", "H", "W"], ...]
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
    """Folder of the run below root. Unset, it is the name of the network and a digest of the
    settings: the same command then finds its run again, and other settings never overwrite it."""
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


class AugmentConfig(Section):
    """Random changes of a training batch, on the training device.

    Each probability is that of one sample; 0 switches the change off.
    """

    flip_probability: Fraction = 0.5
    """Probability of mirroring along an axis, drawn for each of flip_axes."""
    flip_axes: Axes = ("D", "H", "W")
    """Axes along which crops are mirrored. Leave out W, from left to right, where labels name a
    side of the body."""
    affine_probability: Fraction = 0.2
    """Probability of rotating and scaling."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    """Largest rotation about each of rotation_axes, in degrees."""
    rotation_axes: Axes = ("D", "H", "W")
    """Axes about which crops are rotated: [D] rotates within axial slices, as suits thick ones."""
    scale_range: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Largest relative change of the size, for affine_probability."""
    rotation_probability: Fraction = 0.0
    """Probability of rotating, by rotation_degrees, where affine_probability does not."""
    scaling_probability: Fraction = 0.0
    """Probability of scaling by scaling_range, whether or not the crop is rotated too."""
    scaling_range: tuple[PositiveFloat, PositiveFloat] = (0.7, 1.4)
    """Smallest and largest size of a voxel, as a multiple of the case's: above 1, structures become
    smaller."""
    scaling_axes: Axes = ("D", "H", "W")
    """Axes along which crops are scaled and their resolution is lowered: [H, W] leaves thick slices
    as they are."""
    blur_probability: Fraction = 0.0
    """Probability of Gaussian smoothing."""
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = (0.5, 1.0)
    """Smallest and largest width of the smoothing in voxels, drawn for each axis."""
    intensity_scale_probability: Fraction = 0.5
    """Probability of multiplying a channel by 1 + s."""
    intensity_scale_range: Annotated[float, Field(ge=0)] = 0.1
    """Largest absolute value of s."""
    intensity_shift_probability: Fraction = 0.5
    """Probability of adding an offset to a channel."""
    intensity_shift_range: Annotated[float, Field(ge=0)] = 0.1
    """Largest absolute value of the offset, in standard deviations of the image."""
    contrast_probability: Fraction = 0.0
    """Probability of multiplying the distances from a channel's mean, within its range."""
    contrast_range: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.25)
    """Smallest and largest factor; half of them are below 1."""
    low_resolution_probability: Fraction = 0.0
    """Probability of simulating a scan of lower resolution: fewer voxels, interpolated back."""
    low_resolution_range: tuple[LowerShare, LowerShare] = (0.5, 1.0)
    """Smallest and largest share of the voxels that is kept along an axis."""
    channel_probability: Fraction = 0.5
    """Probability that a channel of a blurred sample, or of one at a lower resolution, is so."""
    noise_probability: Fraction = 0.15
    """Probability of adding Gaussian noise."""
    noise_std: Annotated[float, Field(ge=0)] = 0.1
    """Largest standard deviation of the noise, in standard deviations of the image."""
    gamma_probability: Fraction = 0.15
    """Probability of applying a gamma curve to the intensity range of a channel."""
    gamma_range: tuple[PositiveFloat, PositiveFloat] = (0.7, 1.5)
    """Smallest and largest exponent of the curve."""
    inverse_gamma_probability: Fraction = 0.0
    """Probability of applying such a curve to the inverted image, before the other."""
    gamma_keeps_statistics: bool = False
    """Give each channel its mean and deviation back after a curve, and draw half of the exponents
    below 1, as nnU-Net does."""
    target: Target | None = None
    """Changes of yours, as package.module:Class, which come after all others. Whoever trains with
    the configuration runs its code; see docs/settings.md."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keywords of the class in augment.target."""

    @model_validator(mode="after")
    def _keywords_have_a_target(self) -> AugmentConfig:
        _check_keywords(self, "augment")
        return self

    @model_validator(mode="after")
    def _ranges_ascend(self) -> AugmentConfig:
        ranges = ("scaling_range", "blur_sigma", "contrast_range", "gamma_range")
        for key in (*ranges, "low_resolution_range"):
            low, high = getattr(self, key)
            if low > high:
                raise ConfigError(
                    "the smallest value of a range is above its largest",
                    where=f"augment.{key}",
                    got=[low, high],
                    remedy=f"give the smaller one first, as in 'augment.{key}=[{high},{low}]'",
                )
        return self


class LossConfig(Section):
    """What is minimised. Dice is that of the foreground; the loss has `name` from its terms."""

    name: Literal["dice_ce", "dice_focal", "dice_topk", "dice_hausdorff", "tversky"] = "dice_ce"
    """dice_ce: Dice plus cross-entropy. dice_focal: Dice plus focal loss. dice_topk: Dice plus the
    cross-entropy of the hardest voxels. dice_hausdorff: dice_ce plus a loss that weighs each error
    by its distance from the boundary. tversky: Dice with own weights for the two kinds of error."""
    class_weights: dict[str, NonNegativeFloat] | None = None
    """Weights of classes by name, such as {background: 0.5, tumour: 2}, in all terms; 1 for the
    others."""
    deep_supervision: tuple[NonNegativeFloat, ...] | None = None
    """Weights of the outputs of a network with deep supervision, full resolution first; 0 for those
    that are not listed. Unset, they are 1, 1/2, 1/4 and so on. They are divided by their sum."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """dice_focal: how strongly voxels that are nearly right lose weight; 0 is cross-entropy."""
    top_k: Annotated[float, Field(gt=0, le=1)] = 0.1
    """dice_topk: share of the voxels of a crop that count, those with the largest cross-entropy."""
    hausdorff_weight: PositiveFloat = 0.1
    """dice_hausdorff: weight of the boundary term after its warm-up."""
    hausdorff_warmup_steps: Annotated[int, Field(ge=0)] = 1000
    """dice_hausdorff: steps in which the weight of the boundary term rises linearly from 0."""
    tversky_alpha: Annotated[float, Field(ge=0)] = 0.3
    """tversky: weight of voxels that are predicted and not labelled."""
    tversky_beta: Annotated[float, Field(ge=0)] = 0.7
    """tversky: weight of voxels that are labelled and not predicted."""
    target: Target | None = None
    """A loss of yours or of another package, as package.module:Class, in the place of loss.name.
    Whoever trains with the configuration runs its code; see docs/settings.md."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keywords of the class in loss.target, such as {softmax: true}."""

    @model_validator(mode="after")
    def _a_target_has_its_own_settings(self) -> LossConfig:
        _check_keywords(self, "loss")
        shared = {"target", "kwargs", "deep_supervision"}
        for key in LossConfig.model_fields.keys() - shared if self.target else ():
            if getattr(self, key) != LossConfig.model_fields[key].default:
                raise ConfigError(
                    "this setting is not one of loss.target",
                    where=f"loss.{key}",
                    got=f"{getattr(self, key)}, with loss.target={self.target}",
                    remedy="give the keywords of the class in loss.kwargs, or leave one of the two "
                    "out",
                )
        return self

    @model_validator(mode="after")
    def _every_setting_counts(self) -> LossConfig:
        for key, field in LossConfig.model_fields.items():
            kind = key.partition("_")[0]
            others = kind in {"focal", "top", "hausdorff", "tversky"} and kind not in self.name
            if others and getattr(self, key) != field.default:
                raise ConfigError(
                    "this setting is one of another loss",
                    where=f"loss.{key}",
                    got=f"{getattr(self, key)}, with loss={self.name}",
                    remedy=f"choose the loss that has it, or leave loss.{key} out",
                )
        if self.deep_supervision is not None and not sum(self.deep_supervision):
            raise ConfigError(
                "no output of the network would be trained",
                where="loss.deep_supervision",
                got=list(self.deep_supervision),
                remedy="give at least one weight above 0",
            )
        return self


def _check_keywords(section: AugmentConfig | LossConfig, name: str) -> None:
    if section.kwargs and section.target is None:
        raise ConfigError(
            "keywords are given for no class",
            where=f"{name}.kwargs",
            got=section.kwargs,
            remedy=f"give {name}.target=package.module:Class too",
        )


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


class ValidationConfig(Section):
    """Sliding-window inference over whole volumes."""

    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Overlap of neighbouring windows, as a share of their size."""
    window_batch: PositiveInt = 1
    """Windows computed at once."""
    overlays: Annotated[int, Field(ge=0)] = 4
    """How many cases are drawn as overlay pictures: those with the lowest Dice. Unless it is 0, the
    median case is drawn too."""


_OfNextPart = Literal[
    "partition", "account", "qos", "constraint", "reservation", "gpus", "gpus_per_node",
    "memory_gib", "time_min", "sbatch",
]  # fmt: skip


class ClusterConfig(Section):
    """Where `python -m launch` runs a job."""

    name: Literal["local", "debug", "slurm"] = "local"
    """local: processes on this machine; debug: in this process; slurm: sbatch."""
    nodes: PositiveInt = 1
    """Number of nodes."""
    tasks_per_node: PositiveInt = 1
    """Processes (ranks) on each node: one for each GPU if there are GPUs."""
    gpus: str | None = Field(default=None, pattern=r"^([A-Za-z0-9_.-]+:)?[1-9]\d*$")
    """GPUs for each node by their type, such as a100:2; it is another way to set gpus_per_node."""
    gpus_per_task: PositiveInt | None = None
    """GPUs to ask Slurm for, for each rank, in the place of those of a node: the ranks may then lie
    on any nodes' free GPUs, and each sees its own only."""
    gpus_per_node: Annotated[int, Field(ge=0, validate_default=True)] = 0
    """GPUs to ask Slurm for on each node. Without Slurm, the ranks see the GPUs of the shell."""
    cpus_per_task: PositiveInt = 2
    """CPU cores to ask Slurm for, for each rank and its reader processes together."""
    memory_gib: PositiveInt | None = None
    """Host memory of each node in GiB; unset takes the default of the partition."""
    mem_per_gpu: str | None = Field(default=None, pattern=r"^[1-9]\d*[KMGT]?$")
    """Host memory for each GPU in Slurm's form, such as 60G, in the place of memory_gib."""
    time_min: Annotated[PositiveInt | None, BeforeValidator(minutes)] = None
    """Time limit of a job in minutes, or in one of Slurm's forms, such as 24:00:00 or 1-12, which
    becomes minutes; Slurm needs one. A job that reaches it saves a checkpoint and is queued
    again."""
    signal_delay_s: PositiveInt = 120
    """Seconds before the time limit at which Slurm warns the job, so that it saves a checkpoint."""
    partition: str | None = None
    """Slurm partition, or a list of several, such as [a100,h100], of which Slurm takes the one that
    starts the job first; unset takes the default of the cluster."""
    account: str | None = None
    """Slurm account to charge."""
    constraint: str | None = None
    """Slurm node features, such as h100."""
    qos: str | None = None
    """Slurm quality of service."""
    exclude: str | None = None
    """Slurm nodes to avoid, such as gpu[07-08]."""
    nodelist: str | None = None
    """Slurm nodes that the job must have, such as gpu[01-02]."""
    exclusive: bool = False
    """Share the nodes with no other job."""
    reservation: str | None = None
    """Slurm reservation to run in."""
    licenses: str | None = None
    """Licenses to ask Slurm for, such as scratch1 or matlab:2."""
    dependency: str | None = None
    """What has to end before the job starts, in Slurm's form, such as afterok:4711."""
    comment: str | None = None
    """Comment of the job in Slurm. The jobs of a sweep have one of their own instead."""
    mail_user: str | None = None
    """Address to which Slurm writes when the job has ended or failed. For other occasions:
    cluster.sbatch=[--mail-type=ALL]."""
    sbatch: tuple[str, ...] = ()
    """Any other options of sbatch, such as [--switches=1, --tmp=100G]."""
    next_part: dict[_OfNextPart, Any] = Field(default_factory=dict)
    """Settings of the small job that queues the next part of a sweep, where they are not those of
    the trials, such as {partition: cpu, qos: short}. It asks for no GPU; where the partition or
    quality of service allows no such job, give {gpus_per_node: 1}."""
    setup: tuple[str, ...] = ()
    """Shell lines that run before a Slurm job, such as `module load cuda`. Lines that may hold a
    secret are kept out of all files but secrets.json, which only you can read."""
    srun: tuple[str, ...] = ("--cpu-bind=cores",)
    """Further options of the srun that starts the ranks, such as --gpu-bind=closest."""
    python: str | None = Field(default=None, min_length=1)
    """Python of the nodes, or of cluster.container, if it is not the one that submits. It needs the
    same version of this package."""
    container: str | None = Field(default=None, min_length=1)
    """Container image in which the ranks run: a .sif file for Apptainer, or what Slurm's pyxis
    takes, where srun has it. Submission, queueing and the checks before the start stay outside."""
    binds: tuple[str, ...] = ()
    """Folders that the container sees, as FOLDER or FOLDER:INSIDE, besides the run folder, the
    store and those that the cluster's container software mounts by itself."""
    interface: str | None = None
    """Network interface between the nodes, such as ib0, for NCCL and gloo."""
    env: dict[str, str | int] = Field(default_factory=dict)
    """Environment variables of the ranks, such as {NCCL_DEBUG: INFO, NCCL_IB_HCA: mlx5_0}. Values
    of variables that may be secret are kept out of all files but secrets.json, which only you can
    read."""
    requeue: Literal["auto", "slurm", "chain", "never"] = "auto"
    """How a Slurm job goes on once it has saved, or a rank has failed. slurm: Slurm queues it
    again; chain: it queues another job that starts when it has ended; never: it ends; auto: slurm,
    or chain where the cluster does not requeue."""
    retries: Annotated[int, Field(ge=0)] = 2
    """How often a Slurm job is queued again after a rank failed, if it has written no newer
    checkpoint in between. Preemption and the time limit do not count. A mistake in the settings
    ends a job at once."""

    @field_validator("gpus", mode="before")
    @classmethod
    def _number_of_gpus(cls, gpus: object) -> object:
        """A number without a type."""
        return str(gpus) if type(gpus) is int else gpus

    @field_validator("gpus_per_node")
    @classmethod
    def _gpus_of_a_node(cls, number: int, info: ValidationInfo) -> int:
        """One number of GPUs, in whichever way they are asked for."""
        if info.data.get("gpus_per_task"):
            return 0
        gpus = info.data.get("gpus")
        return int(gpus.rpartition(":")[2]) if gpus else number

    @field_validator("partition", mode="before")
    @classmethod
    def _partitions(cls, partition: Any) -> Any:
        """A list of partitions as Slurm writes it."""
        is_list = isinstance(partition, list | tuple) and all(isinstance(p, str) for p in partition)
        return ",".join(partition) if is_list else partition

    @field_validator("sbatch")
    @classmethod
    def _options_of_sbatch(cls, sbatch: tuple[str, ...]) -> tuple[str, ...]:
        sbatch_options(sbatch)
        return sbatch

    @field_validator("next_part")
    @classmethod
    def _settings_of_next_part(cls, next_part: dict[_OfNextPart, Any]) -> dict[_OfNextPart, Any]:
        cls.model_validate(next_part)
        return next_part

    @field_validator("sbatch", "binds")
    @classmethod
    def _each_stays_on_its_line(
        cls, values: tuple[str, ...], info: ValidationInfo
    ) -> tuple[str, ...]:
        return tuple(one_line(value, f"cluster.{info.field_name}") for value in values)

    @field_validator(
        *("partition", "account", "constraint", "qos", "exclude", "interface", "nodelist"),
        *("reservation", "licenses", "dependency", "comment", "mail_user", "python", "container"),
    )
    @classmethod
    def _stays_on_its_line(cls, value: str | None, info: ValidationInfo) -> str | None:
        return value and one_line(value, f"cluster.{info.field_name}")

    @field_validator("setup")
    @classmethod
    def _lines_without_secrets(cls, setup: tuple[str, ...]) -> tuple[str, ...]:
        return hide_lines(setup)

    @field_validator("env")
    @classmethod
    def _variables_without_secrets(cls, env: dict[str, str | int]) -> dict[str, str | int]:
        return hide_variables(env)

    @property
    def world_size(self) -> int:
        """Number of ranks of a job."""
        return self.nodes * self.tasks_per_node

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of the ranks, with those that choose the network interface.

        Secret values are markers, see `segresmamba.secrets`.
        """
        # NCCL connects GPUs, gloo processors.
        names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if self.interface else ()
        chosen = {name: str(self.interface) for name in names}
        return chosen | {name: str(value) for name, value in self.env.items()}

    @model_validator(mode="after")
    def _possible(self) -> ClusterConfig:
        # The nodes and the tasks on each that a backend is limited to; Slurm has no limit.
        most = {"local": (1, self.tasks_per_node), "debug": (1, 1)}.get(self.name)
        if most and (self.nodes, self.tasks_per_node) != most:
            raise ConfigError(
                f"cluster={self.name} cannot run that many ranks",
                where="cluster.nodes, cluster.tasks_per_node",
                got=f"{self.nodes}, {self.tasks_per_node}",
                remedy="local uses one node, debug one process; for more: cluster=slurm on many",
            )
        for first, second in (("memory_gib", "mem_per_gpu"), ("gpus", "gpus_per_task")):
            if getattr(self, first) is not None and getattr(self, second) is not None:
                raise ConfigError(
                    "two settings ask for the same thing",
                    where=f"cluster.{second}",
                    got=f"{getattr(self, second)}, with cluster.{first}={getattr(self, first)}",
                    remedy=f"give one of them; cluster.{first}=null takes back that of a preset",
                )
        if self.name != "slurm" and (self.container or self.python):
            raise ConfigError(
                f"cluster={self.name} runs the ranks as this process runs",
                where="cluster.container, cluster.python",
                got=self.container or self.python,
                remedy="start this command in the container or with the other Python, or give "
                "cluster=slurm",
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
                "the warning time is not shorter than the time limit",
                where="cluster.signal_delay_s",
                got=f"{self.signal_delay_s}, with cluster.time_min={self.time_min}",
                remedy=f"give a cluster.signal_delay_s below {60 * self.time_min}",
            )
        return self


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
