"""The proposed settings of a store, each with its reason, as a commented YAML file."""

from __future__ import annotations

import json
import math
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segresmamba import __version__
from segresmamba.config import Config, load_config
from segresmamba.config.networks import SegResMambaFamily
from segresmamba.configure import rules
from segresmamba.configure.fit import Limits, changed, fit, stride
from segresmamba.configure.rules import Array
from segresmamba.data.store.locations import files_at
from segresmamba.data.store.manifest import Manifest, read_manifest
from segresmamba.errors import ConfigError
from segresmamba.planner.plan import Prediction
from segresmamba.planner.simulation import simulate
from segresmamba.secrets import hide_url
from segresmamba.storage.atomic import write_text

_SHARE_OF_DATASET = 0.05
"""The most that a batch may hold of all voxels, as in nnU-Net."""
_FEWEST_CASES_OFF = 0.1
"""Share of cases of another voxel size from which resampling is worth a second store."""
_VALIDATION = 0.2
"""Share of the time that is left for validations and saves."""


@dataclass(frozen=True)
class Request:
    """What the user gives."""

    store: str
    """Folder, zip file or URL."""
    gpu_memory_gib: float = 8.0
    gpus: int = 1
    budget_h: float | None = None
    """Hours that the training may take; None: as long as it needs."""
    model: str = "segresmamba_fine"
    """A preset of configs/model."""

    @property
    def training_h(self) -> float:
        """Hours that steps may take, without validations and saves."""
        return math.inf if self.budget_h is None else self.budget_h * (1 - _VALIDATION)


@dataclass(frozen=True)
class Proposal:
    """What `configure` found."""

    store: str
    text: str
    """The YAML file."""
    advice: tuple[str, ...]
    """What would be better with another store, and how to make it."""

    def write(self, out: Path | None = None) -> Path:
        """Write the file: to `out`, or where `data.store=STORE` finds it, STORE.yaml.

        For a store at a URL, that is the present folder.

        Raises:
            ConfigError: If it cannot be written, or is there with other words, perhaps edited.
        """
        name = f"{self.store.rstrip('/')}.yaml"
        file = out or Path(name.rpartition("/")[2] if "://" in name else name)
        try:
            if file.exists() and file.read_text("utf-8", "replace") != self.text:
                raise ConfigError(
                    "there is a file of other settings, which may have been edited",
                    where=file,
                    got="another proposal",
                    remedy="move it away, or give --out FILE and compare the two with diff",
                )
            write_text(file, self.text)
        except OSError as error:
            raise ConfigError(
                "the settings cannot be written",
                where=file,
                got=error.strerror,
                remedy="choose another file with --out, and train with config=FILE",
            ) from error
        return file


@dataclass(frozen=True)
class Cases:
    """The cases of a store as arrays along (N, 3)."""

    manifest: Manifest
    spacing_N3: Array
    shape_N3: Array

    @classmethod
    def of(cls, manifest: Manifest) -> Cases:
        """Spacings and shapes from the records of a store."""
        records = manifest.cases.values()
        return cls(
            manifest,
            np.array([record.spacing_mm for record in records]),
            np.array([record.shape_DHW for record in records], dtype=np.float64),
        )

    @property
    def shape_3(self) -> Array:
        """Size of the median case."""
        shape_3: Array = np.median(self.shape_N3, axis=0)
        return shape_3

    @property
    def training(self) -> int:
        """How many cases the first fold trains on."""
        splits = self.manifest.splits
        return len(splits[0].train) if splits else len(self.shape_N3)


def configure(request: Request) -> Proposal:
    """Choose the settings of a first run on a store. It takes a dozen seconds and no GPU.

    Raises:
        UserError: If there is no store, no such network, or no training step that fits.
    """
    manifest = read_manifest(files_at(request.store))
    cases = Cases.of(manifest)
    channels, labels = len(manifest.channel_names), manifest.labels
    found = largest_step(request, cases.shape_3, len(cases.shape_N3), channels, labels)
    settings: dict[str, tuple[Any, str]] = {  # value and reason by dotted key
        **_data_settings(request, cases, found),
        **_augmentation_settings(cases),
        **_model_settings(request, found.config, cases),
        **_training_settings(request, cases, found),
        "plan.gpu_memory_gib": (
            request.gpu_memory_gib,
            "`python -m launch train` warns if later changes do not fit",
        ),
        "cluster.tasks_per_node": (
            request.gpus,
            "a process for each GPU; repeat it after cluster=slurm, which replaces this section",
        ),
    }
    return Proposal(request.store, _text(request, cases, settings), tuple(advice(request, cases)))


def largest_step(
    request: Request, shape_3: Array, cases: int, channels: int, labels: Mapping[str, int]
) -> Prediction:
    """Choose network, patch and batch for a dataset.

    Args:
        request: The GPUs, the time and the network.
        shape_3: Size of the median case.
        cases: How many cases there are.
        channels: Channels of an image.
        labels: Name to value of the dataset's labels.

    Raises:
        ConfigError: If there is no such network, or no training step fits.
    """

    def predict(config: Config) -> Prediction:
        train = config.train
        crops = train.batch_size // (config.cluster.world_size * train.accumulation)
        return Prediction(config, crops, simulate(config, channels, labels, crops, "cuda"))

    # The preset of the network, as deep as the cases are large.
    config = load_config([f"model={request.model}", "cluster=local"])
    config = changed(config, "data", store=request.store)
    config = changed(config, "cluster", tasks_per_node=request.gpus)
    values: dict[str, Any] = {}
    if hasattr(config.model, "deep_supervision"):
        values["deep_supervision"] = True
    if isinstance(config.model, SegResMambaFamily):
        dims = config.model.dims
        values["dims"] = dims[: rules.stages_for(shape_3, len(dims))]
    limits = Limits(
        memory_gib=request.gpu_memory_gib,
        voxels=request.training_h * 3600 * rules.VOXELS_PER_S / rules.STEPS[0],
        crops=_SHARE_OF_DATASET * cases * float(np.prod(shape_3)),
    )
    return fit(changed(config, "model", **values), shape_3, limits, predict)


def _data_settings(request: Request, cases: Cases, found: Prediction) -> dict[str, tuple[Any, str]]:
    patch, multiple = found.config.data.patch, stride(found.config)
    if patch == rules.whole_case(cases.shape_3, multiple):
        size = "the median case"
    else:
        size = "as large as memory and a limit of time allow, in the proportions of the median case"
    crop_bytes = math.prod(patch) * 4 * len(cases.manifest.channel_names)
    return {
        "data.store": (hide_url(request.store), "the store that all values follow from"),
        "data.patch": (
            patch,
            f"{size}, in multiples of {multiple}; a step takes {found.needed_gib:.2f} of "
            f"{request.gpu_memory_gib:g} GiB",
        ),
        "data.workers": (
            rules.workers_for(request.store, crop_bytes),
            f"a crop is {crop_bytes / 2**20:.1f} MiB; a store at a URL gets 4",
        ),
    }


def _augmentation_settings(cases: Cases) -> dict[str, tuple[Any, str]]:
    spacing_3 = np.median(cases.spacing_N3, axis=0)
    flips = rules.flip_axes(cases.manifest.labels)
    rotations = rules.rotation_axes(spacing_3)
    thick = len(rotations) == 1
    return {
        "augment.flip_axes": (
            flips,
            "no label names a side of the body"
            if "W" in flips
            else "labels name sides of the body, so left and right are not swapped",
        ),
        "augment.rotation_axes": (
            rotations,
            f"voxels of {_times(spacing_3)} mm: "
            + ("thick slices, so only within them" if thick else "about every axis"),
        ),
        "augment.scaling_axes": (
            rules.scaling_axes(spacing_3),
            "nor are thick slices scaled or made coarser across themselves"
            if thick
            else "scaling and coarsening take every axis, too",
        ),
    }


def _training_settings(
    request: Request, cases: Cases, found: Prediction
) -> dict[str, tuple[Any, str]]:
    train = found.config.train
    voxels = math.prod(found.config.data.patch)
    per_pass = cases.training * max(1.0, float(np.prod(cases.shape_3)) / voxels)
    per_rank = voxels * train.batch_size / found.config.cluster.world_size
    steps, hours = rules.steps_for(per_pass, train.batch_size, per_rank, request.training_h)
    budget = "" if request.budget_h is None else f", within {request.budget_h:g} h"
    return {
        "train.batch_size": (
            train.batch_size,
            "two crops, or one for each GPU; more if a patch holds a whole case, up to "
            f"{_SHARE_OF_DATASET:.0%} of the dataset's voxels",
        ),
        "train.accumulation": (
            train.accumulation,
            f"a GPU computes {found.micro_batch} of the crops at once",
        ),
        "train.zero_stage": (
            train.zero_stage,
            "a higher stage would free less than a tenth of the memory",
        ),
        "train.precision": ("bf16", "half the memory of activations; the weights stay fp32"),
        "train.max_steps": (
            steps,
            f"{rules.PASSES} passes over {cases.training} training cases, {rules.STEPS[0]} to "
            f"{rules.STEPS[1]} steps{budget}: about {hours:.1f} h without validation at "
            f"{rules.VOXELS_PER_S / 1e6:g} million voxels/s per GPU, which is an assumption",
        ),
        "train.warmup_steps": (min(200, steps // 10), "as the preset; a tenth of a short run"),
        "train.validate_every": (max(1, steps // 10), "ten validations in the run"),
    }


def _model_settings(request: Request, config: Config, cases: Cases) -> dict[str, tuple[Any, str]]:
    model = config.model
    found: dict[str, tuple[Any, str]] = {"model.name": (model.name, "the preset of --model")}
    if isinstance(model, SegResMambaFamily):
        found["model.dims"] = (
            model.dims,
            f"{len(model.dims)} stages: the deepest map keeps about four voxels along a side of "
            f"{rules.mean_side(cases.shape_3):.0f}, the mean",
        )
        found["model.checkpoint_stages"] = (
            model.checkpoint_stages,
            "stages that are computed again to save memory; 0 where the patch fits without",
        )
    if getattr(model, "use_checkpoint", False):
        found["model.use_checkpoint"] = (True, "the patch fits only with recomputation")
    if hasattr(model, "deep_supervision"):
        found["model.deep_supervision"] = (True, "coarse levels learn too, at little cost")
    # The file names the network and not the preset, so it repeats what the preset changes.
    for name in model.model_dump(exclude_defaults=True):
        found.setdefault(f"model.{name}", (getattr(model, name), f"as the preset {request.model}"))
    return found


def advice(request: Request, cases: Cases) -> list[str]:
    """Why another conversion of the dataset would be better, and its command."""
    manifest = cases.manifest
    policy = manifest.storage.policy
    target_3 = rules.target_spacing(cases.spacing_N3, cases.shape_N3)
    off = rules.share_off_target(cases.spacing_N3, target_3)
    kinds = [one.kind for one in manifest.preprocessing.normalisation]
    kinds = kinds or ["zscore"] * len(manifest.channel_names)
    least_NC = np.array([[one.min for one in case.statistics] for case in manifest.cases.values()])
    wanted = [
        "ct" if kind == "zscore" and rules.looks_like_ct(least_N) else kind
        for kind, least_N in zip(kinds, least_NC.T, strict=True)
    ]
    reasons, options = [], []
    spacing_3 = ",".join(f"{size:.4g}" for size in target_3)
    if off > _FEWEST_CASES_OFF and manifest.preprocessing.spacing_mm is None:
        reasons.append(f"{off:.0%} of the cases have voxels of another size than {spacing_3} mm")
        options += ["--spacing", spacing_3]
    elif policy.spacing != "keep" and (kept := manifest.preprocessing.spacing_mm):
        options += ["--spacing", ",".join(f"{size:g}" for size in kept)]
    if wanted != kinds:
        reasons.append("the intensities look like CT, which is clipped to what the labels hold")
    if not reasons:
        return []
    if any(kind != "zscore" for kind in wanted):
        # Clipped CT is normalised as ct, and should be stored as before.
        asked = dict(enumerate(policy.intensity))
        words = [
            "ct-clipped" if asked.get(channel) == "ct-clipped" else kind
            for channel, kind in enumerate(wanted)
        ]
        options += ["--intensity", ",".join(words)]
    options += ["--crop"] if policy.crop else []
    source, out = manifest.storage.source or "SOURCE", f"{Path(request.store).stem}-better.zarr"
    command = shlex.join(["segresmamba", "convert", source, out, *options])
    return [*reasons, f"a better store: {command}, then segresmamba configure {shlex.quote(out)}"]


def _text(request: Request, cases: Cases, settings: Mapping[str, tuple[Any, str]]) -> str:
    """The file: a head, then the sections, each value below its reason."""
    manifest = cases.manifest
    kinds = [one.kind for one in manifest.preprocessing.normalisation] or ["zscore"]
    intensities = ", ".join(kinds)
    spacing_3 = np.median(cases.spacing_N3, axis=0)
    lines = [
        f"# {manifest.name}: {len(cases.shape_N3)} cases, median {_times(cases.shape_3)} voxels of "
        f"{_times(spacing_3)} mm (D, H, W).",
        f"# Intensities are normalised as the store says: {intensities}.",
        f"# segresmamba {__version__} proposes these settings for {request.gpus} GPU(s) of "
        f"{request.gpu_memory_gib:g} GiB. Edit them as you like;",
        "# `config=THIS_FILE` reads them, and key=value on the command line wins over them.",
        *(f"# Note: {line}" for line in advice(request, cases)),
    ]
    section = ""
    for key, (value, reason) in settings.items():
        own, _, name = key.partition(".")
        if own != section:
            lines += ["", f"{own}:"]
            section = own
        lines += textwrap.wrap(reason, 98, initial_indent="  # ", subsequent_indent="  # ")
        lines.append(f"  {name}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _times(sizes_3: Array) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes_3)
