"""Trained models on the disk: a run, a folder of runs that are averaged, or a model folder.

RUN/config.yaml, RUN/best/weights.safetensors  a run; best/postprocessing.json if it has rules
FOLDER/<run>/...                             every trained run in it, such as the folds of a store
<root>/sweeps/<name>/manifest.json           the trained runs of a sweep, which lie in <root>
FOLDER/model.json, config-0.yaml, ...        a model folder, which needs no run
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from segresmamba.config import Config, read_config
from segresmamba.data import Dataset
from segresmamba.data.preprocessing import SAME_SIZE, Normalisation
from segresmamba.data.untrusted import stays_inside
from segresmamba.errors import ConfigError, DataError, warn_once
from segresmamba.inference.postprocessing import Rule, read_rules
from segresmamba.storage.digest import file_digest
from segresmamba.storage.json_text import parse_json
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.weights import WeightsFacts, read_facts
from segresmamba.tracking import PRUNED, TrackingError, read_history

logger = logging.getLogger(__name__)

MODEL_FILE = "model.json"
MODEL_VERSION = 1
"""Version of model folders that this version writes; it reads no newer one."""
_SWEEP_FILE = "manifest.json"


@dataclass(frozen=True)
class TrainedModel:
    """One trained network on the disk, without its weights in memory."""

    weights: Path
    config: Config
    facts: WeightsFacts
    postprocessing: tuple[Rule, ...] = ()
    """What is done to its label maps, see `inference.postprocessing`."""

    @classmethod
    def from_run(cls, weights: Path, config: Path) -> TrainedModel:
        """The model of a run, with the rules beside its weights, which are not read yet.

        Raises:
            UserError: If the configuration or the rules cannot be read, or the weights are missing
                or damaged where their facts are.
        """
        facts = read_facts(weights)
        return cls(weights, read_config(config), facts, read_rules(weights, facts.step))


class _MemberFiles(BaseModel):
    config: str
    weights: str


class ModelFolderRecord(BaseModel):
    """What prediction reads of a model folder's `model.json`; it may have other keys."""

    format_version: int
    members: list[_MemberFiles] = Field(min_length=1)
    postprocessing: tuple[Rule, ...] = ()
    files: dict[str, str] = {}
    """Digest of each file. Those of weights are not compared: weights have digests inside."""


def open_models(path: Path) -> list[TrainedModel]:
    """The trained models at a path, at least one. Their outputs are averaged if they are several.

    Args:
        path: A run's folder, a folder of runs or of a sweep, or a model folder.

    Raises:
        UserError: If there is no trained model, a file of one cannot be read, or the models do not
            fit together.
    """
    if (path / MODEL_FILE).exists():
        models = _members(path)
    elif RunFolder(path).config.exists():
        models = [_of_run(path)]
    else:
        runs = trained_runs(path)
        logger.info("%s: averaging %s", path, ", ".join(run.name for run in runs))
        models = [_of_run(run) for run in runs]
    require_same_task(models)
    return models


def require_same_task(models: Sequence[TrainedModel]) -> None:
    """Refuse models whose outputs cannot be averaged.

    Raises:
        DataError: Names the first model that differs from the first of all, and what differs.
    """
    first, *others = models
    expected = _task(first)
    seen = {first.weights.resolve()}
    for model in others:
        if model.weights.resolve() in seen:
            warn_once(logger, "%s is named twice, and so it counts twice", model.weights)
        seen.add(model.weights.resolve())
        for what, value in _task(model).items():
            if not _are_same(value, expected[what]):
                raise DataError(
                    f"models with different {what} cannot be averaged",
                    where=model.weights,
                    got=f"{value}; {first.weights} has {expected[what]}",
                    remedy="name models that were trained on one store, for the same classes",
                )


def common_rules(models: Sequence[TrainedModel]) -> tuple[Rule, ...]:
    """The post-processing of all models; none if theirs differ, and a warning."""
    first, *others = (model.postprocessing for model in models)
    if all(rules == first for rules in others):
        return first
    logger.warning("the models have different post-processing rules: none is used")
    return ()


def require_same_preprocessing(facts: WeightsFacts, dataset: Dataset) -> None:
    """Refuse a store whose cases were converted otherwise than those that the network saw.

    Raises:
        DataError: Has both policies.
    """
    # Weights and stores of earlier versions do not list how each channel is normalised: by zscore.
    zscore = (Normalisation(),) * len(dataset.channel_names)
    before, now = (
        # The voxel sizes are those of the cases at hand, not a part of the policy.
        one.model_copy(update={"normalisation": one.normalisation or zscore, "trained_mm": None})
        for one in (facts.preprocessing, dataset.preprocessing)
    )
    if before != now:
        raise DataError(
            "the store was converted under another policy than the network's",
            where=dataset.where,
            got=f"{now}, the network was trained on {before}",
            remedy="convert with the policy that the network was trained on, or train again",
        )


def _task(model: TrainedModel) -> dict[str, object]:
    """What must be the same in all models of an ensemble."""
    seen = model.facts.preprocessing
    return {
        "labels": dict(model.facts.labels),
        "channels": list(model.facts.channel_names),
        "regions": model.config.data.regions,
        "voxel size": seen.only_mm or seen.trained_mm,
        "preprocessing": seen.model_copy(update={"trained_mm": None}),
    }


def _are_same(one: object, other: object) -> bool:
    """Whether two facts are equal. Voxel sizes of two stores differ by the rounding of headers."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return bool(np.allclose(one, other, rtol=SAME_SIZE, atol=0))
    return one == other


def _of_run(path: Path) -> TrainedModel:
    run = RunFolder(path)
    return TrainedModel.from_run(run.best, run.config)


def trained_runs(folder: Path) -> list[Path]:
    """The runs in a folder, or of a sweep, that have best weights; at least one.

    Runs that a search gave up are no results, and are left out.

    Raises:
        UserError: If there is none, or the sweep's record cannot be read.
    """
    if (folder / _SWEEP_FILE).exists():
        try:
            named = [Path(trial["run"]) for trial in _json(folder / _SWEEP_FILE)["trials"]]
        except (LookupError, TypeError) as error:
            raise _unreadable(folder / _SWEEP_FILE, f"no list of runs: {error!r}") from error
        root = folder.resolve().parents[1]  # a sweep of the runs in <root> lies in <root>/sweeps
        runs = [root / run.name for run in named]
    else:
        runs = sorted(path.parent for path in folder.glob("*/config.yaml"))
    pruned = [run for run in runs if _is_pruned(run)]
    trained = [run for run in runs if RunFolder(run).best.exists() and run not in pruned]
    if not trained:
        raise ConfigError(
            "there is no trained model",
            where=folder,
            got=_what_is_there(folder, runs, pruned),
            remedy="name a run folder that has finished a validation, a folder of such runs, or a "
            "folder that `segresmamba export` wrote"
            + ("; if it is an image, another image does not exist" if folder.is_file() else ""),
        )
    left = [run for run in runs if run not in trained and run not in pruned]
    for why, those in (("have no best weights", left), ("were given up by a search", pruned)):
        if those:
            names = ", ".join(run.name for run in those)
            logger.warning("%s: these runs %s and are left out: %s", folder, why, names)
    return trained


def _is_pruned(run: Path) -> bool:
    try:
        history = read_history(run)
    except TrackingError:  # weights can be used without a journal
        return False
    return PRUNED in history.tags and history.status != "finished"


def _what_is_there(folder: Path, runs: Sequence[Path], pruned: Sequence[Path]) -> str:
    if folder.is_file():
        return "a file"
    if not folder.is_dir():
        return "no such folder"
    if not runs:
        return "no run and no model.json"
    given_up = f", {len(pruned)} of them given up by a search" if pruned else ""
    return f"{len(runs)} runs{given_up}, none with best weights"


def _members(folder: Path) -> list[TrainedModel]:
    path = folder / MODEL_FILE
    content = _json(path)
    version = content.get("format_version")
    if isinstance(version, int) and version > MODEL_VERSION:
        raise DataError(
            "the model folder is of a newer version",
            where=path,
            got=f"format_version {version}; this version reads up to {MODEL_VERSION}",
            remedy="install a newer segresmamba",
        )
    try:
        record = ModelFolderRecord.model_validate(content)
    except ValidationError as error:
        raise _unreadable(path, error.errors()[0]["msg"]) from error
    models = []
    for member in record.members:
        if not (stays_inside(member.config) and stays_inside(member.weights)):
            raise _unreadable(path, f"files outside the folder: {member}")
        weights, config = folder / member.weights, folder / member.config
        written = record.files.get(member.config)
        if written and config.exists() and (found := file_digest(config)) != written:
            raise _unreadable(config, f"checksum {found}, written with {written}")
        facts, rules = read_facts(weights), record.postprocessing
        models.append(TrainedModel(weights, read_config(config), facts, rules))
    return models


def _json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(content, dict):
        raise _unreadable(path, f"{type(content).__name__}, not an object")
    return content


def _unreadable(path: Path, got: str) -> DataError:
    return DataError(
        "a file of the model cannot be read",
        where=path,
        got=got.splitlines()[0][:200],
        remedy="bring it back from a copy, or export the model again",
    )
