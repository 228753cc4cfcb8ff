"""Which setting a user meant by a key that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from segresmamba.config.schema import Config

# What nnU-Net, MONAI, Lightning and Slurm call a setting, without underscores. Where several
# settings stand, the first that this version has is meant. A name without a dot may be a group's.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "learningrate": ("train.lr",),
    "initiallr": ("train.lr",),
    "baselr": ("train.lr",),
    "loss": ("loss", "loss.name", "train.loss", "data.regions"),
    "lossfunction": ("loss", "loss.name", "train.loss", "data.regions"),
    "criterion": ("loss", "loss.name", "train.loss", "data.regions"),
    "patchsize": ("data.patch",),
    "cropsize": ("data.patch",),
    "roisize": ("data.patch",),
    "imgsize": ("data.patch",),
    "imagesize": ("data.patch",),
    "batch": ("train.batch_size",),
    "batches": ("train.batch_size",),
    "epochs": ("train.epochs", "train.max_steps"),
    "maxepochs": ("train.epochs", "train.max_steps"),
    "numepochs": ("train.epochs", "train.max_steps"),
    "steps": ("train.max_steps",),
    "iterations": ("train.max_steps",),
    "numiterations": ("train.max_steps",),
    "gpus": ("cluster.gpus", "cluster.gpus_per_node"),
    "numgpus": ("cluster.gpus_per_node",),
    "ngpus": ("cluster.gpus_per_node",),
    "devices": ("cluster.tasks_per_node",),
    "ntasks": ("cluster.tasks_per_node",),
    "numworkers": ("data.workers",),
    "dataset": ("data.store",),
    "datadir": ("data.store",),
    "dataroot": ("data.store",),
    "outdir": ("run.root",),
    "outputdir": ("run.root",),
    "checkpoint": ("train.checkpoint_every",),
    "pretrained": ("train.init_from",),
    "pretrainedweights": ("train.init_from",),
    "finetune": ("train.init_from",),
    "amp": ("train.precision",),
    "fp16": ("train.precision",),
    "gradclip": ("train.clip_norm",),
    "gradientclipval": ("train.clip_norm",),
    "gradaccum": ("train.accumulation",),
    "accumulategradbatches": ("train.accumulation",),
    "scheduler": ("train.schedule",),
    "lrscheduler": ("train.schedule",),
    "warmup": ("train.warmup_steps",),
    "valinterval": ("train.validate_every",),
    "fold": ("train.fold",),
    "oversampleforeground": ("data.foreground_fraction",),
    "network": ("model",),
    "arch": ("model",),
    "architecture": ("model",),
    "backbone": ("model",),
    "walltime": ("cluster.time_min",),
    "time": ("cluster.time_min",),
    "mem": ("cluster.memory_gib",),
    "queue": ("cluster.partition",),
    "mirroring": ("augment.flip_probability",),
    "mirror": ("augment.flip_probability",),
    "lowres": ("augment.low_resolution_probability",),
    "simulatelowresolution": ("augment.low_resolution_probability",),
    "brightness": ("augment.intensity_scale_probability",),
}


def all_keys() -> list[str]:
    """Every section and setting by its dotted key; those of every network are below model."""
    return list(dict.fromkeys(_keys(Config)))


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that an annotation names: none, one, or the members of a union."""
    candidates = get_args(annotation) or (annotation,)
    return [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]


def likely_key(key: str, keys: Sequence[str]) -> str | None:
    """The setting that a user most likely meant: by its last part, its meaning, its spelling.

    Args:
        key: What was written, such as "train.learning_rat".
        keys: All settings and sections, such as "train.lr" and "train".

    Returns:
        One of `keys`, or None if none is near.
    """
    last = _plain(key.rpartition(".")[2])
    if same_name := [one for one in keys if _plain(one.rpartition(".")[2]) == last]:
        section = key.partition(".")[0]
        return max(same_name, key=lambda one: _similarity(section, one.partition(".")[0]))
    # A synonym that is spelled a little differently is nearer than a key that looks like it.
    for synonym in difflib.get_close_matches(last, _SYNONYMS, n=1, cutoff=0.85):
        if known := [one for one in _SYNONYMS[synonym] if one in keys]:
            return known[0]
    nearest = max(keys, key=lambda one: _nearness(key, one))
    return nearest if _nearness(key, nearest) >= 0.65 else None


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for kind in sections(field.annotation):
            yield from _keys(kind, f"{prefix}{name}.")


def _nearness(key: str, candidate: str) -> float:
    """How alike two keys are spelled, from 0 to 1: the last part counts more than the section."""
    section, _, last = key.rpartition(".")
    other_section, _, other_last = candidate.rpartition(".")
    names = _similarity(_plain(last), _plain(other_last))
    return 0.7 * names + 0.3 * _similarity(section, other_section) if section else names


def _similarity(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first, second).ratio()


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
