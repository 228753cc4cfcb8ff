"""What makes two configurations the same experiment, and the folder of its run.

A digest names the experiment. It must stay what it was when a later version gets new settings, or
the same command would no longer find its run. So a setting that the first version lacked counts
only where it has another value than its default.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from segresmamba.config.networks import PluginConfig
from segresmamba.config.schema import Config, DataConfig

# Settings that change no result: where a run lives, where it is tracked and computed, how ranks
# divide the computation, and how often a run records and saves. A run may go on with other values.
_FREE_SECTIONS = ("run.", "tracking.", "cluster.", "validation.", "plan.")
_FREE_KEYS = {
    "data.stage",
    "data.workers",
    "data.prefetch",
    "data.patience_s",
    "data.max_bad_cases",
    "train.log_every",
    "train.validate_every",
    "train.checkpoint_every",
    "train.keep_last",
    "train.hang_timeout_s",
    "train.max_skipped_in_a_row",
    "train.max_skipped_share",
    "train.threads",
    "train.device",
    # These compute the same sums in another order, which depends on the machines.
    "train.accumulation",
    "train.compile",
    "train.zero_stage",
    "train.overlap_comm",
}
# The settings of the first version that named runs, which are in every digest, and so are all of a
# network but the later ones. Nothing is ever added here.
_FIRST = frozenset(
    {
        "seed", "data.store", "data.patch", "data.foreground_fraction", "data.regions",
        "data.crops_per_case", "augment.flip_probability", "augment.affine_probability",
        "augment.rotation_degrees", "augment.scale_range", "augment.intensity_scale_probability",
        "augment.intensity_scale_range", "augment.intensity_shift_probability",
        "augment.intensity_shift_range", "augment.noise_probability", "augment.noise_std",
        "augment.gamma_probability", "augment.gamma_range", "train.max_steps", "train.batch_size",
        "train.fold", "train.lr", "train.weight_decay", "train.warmup_steps", "train.schedule",
        "train.clip_norm", "train.precision", "train.channels_last",
    }
)  # fmt: skip
# Settings of networks that are younger than their network.
_LATER_OF_NETWORKS = frozenset({"zero_toms", "fine_channels"})
# A version of November 2026 also counted these with their defaults.
_COUNTED_ONCE = frozenset(
    {
        "augment.flip_axes", "augment.rotation_axes", "loss.name", "loss.class_weights",
        "loss.deep_supervision", "loss.focal_gamma", "loss.top_k", "loss.hausdorff_weight",
        "loss.hausdorff_warmup_steps", "loss.tversky_alpha", "loss.tversky_beta", "train.epochs",
        "train.patience", "train.init_from", "train.freeze", "train.loaded_lr_factor",
    }
)  # fmt: skip


def experiment(config: Config) -> dict[str, Any]:
    """The settings that change a result, by dotted key; a resumed run may change all others."""
    values = config.model_dump(mode="json")
    # Unset, the layout is a choice of the machine. It was false before it could be left unset.
    values["train"]["channels_last"] = bool(values["train"]["channels_last"])
    return {key: value for key, value in flat(values) if changes_result(key)}


def changes_result(key: str) -> bool:
    """Whether the setting of this dotted key changes a result; see `experiment`."""
    return key not in _FREE_KEYS and not key.startswith(_FREE_SECTIONS)


def config_digest(config: Config) -> str:
    """Eight hex digits that name an experiment."""
    return _digest(config, _FIRST)


def former_digest(config: Config) -> str:
    """The digest that a version in between gave the experiment."""
    return _digest(config, _FIRST | _COUNTED_ONCE)


def run_folder(config: Config) -> Path:
    """The folder of this configuration's run; a run of a former version keeps its own."""
    if config.run.name:
        return config.run.root / config.run.name
    model = config.model
    network = model.label if isinstance(model, PluginConfig) else model.name
    folder = config.run.root / f"{network}-{config_digest(config)}"
    former = config.run.root / f"{network}-{former_digest(config)}"
    return former if former.exists() and not folder.exists() else folder


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested sections by dotted key."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _digest(config: Config, counted: Collection[str]) -> str:
    fields = type(config.model).model_fields
    later = {f"model.{key}": fields[key].default for key in _LATER_OF_NETWORKS & fields.keys()}
    defaults = _defaults() | later
    kept = {
        key: value
        for key, value in experiment(config).items()
        if key in counted or key not in defaults or value != defaults[key]
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


@cache
def _defaults() -> dict[str, Any]:
    """Default by dotted key of all settings but those of networks."""
    config = Config(data=DataConfig(store="any", patch=(1, 1, 1)))
    return {k: value for k, value in flat(config.model_dump(mode="json")) if k[:6] != "model."}
