"""What there is to see: the held-out cases of a run, the cases of a store, or files."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from segresmamba.config import read_config
from segresmamba.data import Case, Dataset, open_dataset
from segresmamba.data.formats.source import LABEL_ENDINGS, read_json
from segresmamba.data.volumes.voxel_file import VoxelFile, open_voxels
from segresmamba.errors import ConfigError, DataError
from segresmamba.storage.json_text import parse_json
from segresmamba.storage.run_folder import RunFolder
from segresmamba.view.segmenter import Segmenter
from segresmamba.view.volumes import (
    Grid,
    image_nifti,
    label_nifti,
    on_axes_of,
    read_file,
    stored_channel,
)

logger = logging.getLogger(__name__)

PREDICTION, REFERENCE = "prediction", "reference"
Read = Callable[[], Any]
"""Reads a volume; returns a nibabel image."""


@dataclass(frozen=True)
class ViewedCase:
    """One case. Nothing of it has been read but the header."""

    name: str
    grid: Grid
    """The grid of the image."""
    channels: Mapping[str, Read]
    labels: Mapping[str, Read]
    """`PREDICTION` and `REFERENCE`, as far as there are such."""
    dice: float | None = None
    """Mean over the classes, as `evaluate` has measured it."""


@dataclass(frozen=True)
class CaseList:
    """Cases, and the meaning of their label values."""

    title: str
    cases: Sequence[ViewedCase]
    label_names: Mapping[int, str]
    ignore_value: int | None = None
    """Value of reference voxels that nobody has annotated."""


@dataclass(frozen=True)
class ViewRequest:
    """What the user wants to see."""

    targets: Sequence[str]
    """A run's folder, a store, or the files of one case, one for each channel."""
    label: Path | None = None
    reference: Path | None = None
    predictions: Path | None = None
    """Folder of label maps that are named as the cases."""
    store: str | None = None
    """The dataset of a run, if it lies elsewhere on this machine."""

    def open(self) -> CaseList:
        """Find out what there is. No voxel is read.

        Raises:
            UserError: If the target is none of these, or a part of it is missing.
        """
        first, *others = self.targets
        if RunFolder(Path(first)).config.exists():
            self._refuse(others, label=self.label, reference=self.reference)
            return _run(RunFolder(Path(first)), self.store, self.predictions)
        is_remote = "://" in first or first.endswith(".zip")
        if is_remote or "cases" in read_json(Path(first) / "dataset.json"):
            self._refuse(others, label=self.label, reference=self.reference, store=self.store)
            dataset = open_dataset(first)
            case_ids: Sequence[str] = dataset.case_ids
            predict = None
            if self.predictions is not None:
                predict = partial(_predicted, self.predictions)
                case_ids = _with_prediction(case_ids, self.predictions)
            cases = [_stored_case(dataset[one], dataset, predict) for one in case_ids]
            names = {value: name for name, value in dataset.labels.items() if value}
            return CaseList(dataset.name, cases, names, dataset.manifest.storage.ignore_value)
        if (Path(first) / "model.json").exists():
            raise ConfigError(
                "a model folder has no cases to show",
                where=first,
                got="model.json",
                remedy=f"segment an image, `segresmamba predict {first} IMAGE --out LABEL`, then "
                "`segresmamba view IMAGE --label LABEL`",
            )
        self._refuse([], predictions=self.predictions, store=self.store)
        return _files([Path(target) for target in self.targets], self.label, self.reference)

    def _refuse(self, others: Sequence[str], **options: Path | str | None) -> None:
        """Refuse targets and options that would be ignored."""
        if others:
            raise ConfigError(
                "one run or one store can be shown at a time",
                where="segresmamba view",
                got=", ".join(self.targets),
                remedy="start the command once for each; every start takes a port of its own",
            )
        for option, value in options.items():
            if value is not None:
                raise ConfigError(
                    f"--{option} does not go with {self.targets[0]}",
                    where=f"--{option}",
                    got=value,
                    remedy="--label and --reference go with image files, --predictions with a run "
                    "or a store, --store with a run",
                )


def _run(folder: RunFolder, store: str | None, predictions: Path | None) -> CaseList:
    config = read_config(folder.config)
    dice = _dice_of_cases(folder.results)
    dataset = open_dataset(store or config.data.store, patience_s=config.data.patience_s)
    fold = config.train.fold
    if fold is None or fold >= len(dataset.splits):
        raise ConfigError(
            "the run has no held-out cases",
            where=f"{folder.config}: train.fold",
            got=f"{fold}; {dataset.where} has {len(dataset.splits)} folds",
            remedy="look at other cases: `segresmamba predict`, then `segresmamba view IMAGE "
            "--label LABEL`; or give the store that the run was trained on with --store",
        )
    # The worst first; then those that evaluation could not score.
    ordered = sorted(dataset.splits[fold]["val"], key=lambda one: (dice.get(one, math.inf), one))
    predict: Callable[[Case], Any]
    if predictions is None:
        predict = Segmenter(folder, dataset)
    else:
        predict = partial(_predicted, predictions)
        ordered = _with_prediction(ordered, predictions)
    cases = [_stored_case(dataset[one], dataset, predict, dice.get(one)) for one in ordered]
    regions = config.data.regions or {}
    names = {  # a value that belongs to regions is named by them
        value: " + ".join(region for region, members in regions.items() if value in members) or name
        for name, value in dataset.labels.items()
        if value
    }
    return CaseList(folder.path.name, cases, names, dataset.manifest.storage.ignore_value)


def _dice_of_cases(results: Path) -> dict[str, float]:
    """Mean Dice of each case that has one."""
    remedy = f"run `segresmamba evaluate {results.parent}`, which scores the held-out cases"
    try:
        cases = parse_json(results.read_text(encoding="utf-8"))["cases"]
        values = {
            name: [one["dice"] for one in classes.values() if one.get("dice") is not None]
            for name, classes in cases.items()
        }
        return {name: fmean(found) for name, found in values.items() if found}
    except FileNotFoundError as error:
        raise DataError(
            "the run has no results yet", where=results, got="no such file", remedy=remedy
        ) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            "the run's results cannot be read", where=results, got=repr(error), remedy=remedy
        ) from error


def _stored_case(
    case: Case,
    dataset: Dataset,
    predict: Callable[[Case], Any] | None,
    dice: float | None = None,
) -> ViewedCase:
    grid = Grid(case.original.shape_XYZ, case.original.affine)

    def channel(number: int) -> Any:
        return image_nifti(stored_channel(case, number), grid.affine)

    def reference() -> Any:
        found = case.reference()
        return label_nifti(np.asarray(found.dataobj), found.affine, case.case_id)

    labels: dict[str, Read] = {REFERENCE: reference}
    if predict is not None:
        labels = {PREDICTION: partial(predict, case), **labels}
    channels = {name: partial(channel, at) for at, name in enumerate(dataset.channel_names)}
    return ViewedCase(case.case_id, grid, channels, labels, dice)


def _predicted(folder: Path, case: Case) -> Any:
    """The prediction of a case that lies in a folder."""
    grid = Grid(case.original.shape_XYZ, case.original.affine)
    return _label_of_file(open_voxels(_label_file(folder, case.case_id)), grid)


def _label_file(folder: Path, case_id: str) -> Path:
    names = (folder / f"{case_id}{ending}" for ending in LABEL_ENDINGS)
    return next((path for path in names if path.exists()), folder / f"{case_id}.nii.gz")


def _with_prediction(case_ids: Sequence[str], folder: Path) -> list[str]:
    """The cases that a folder has label maps of."""
    found = [one for one in case_ids if _label_file(folder, one).exists()]
    if not found:
        raise DataError(
            "the folder has no prediction of these cases",
            where=folder,
            got=f"no {case_ids[0]}.nii.gz, for example",
            remedy="give the folder that `segresmamba predict` wrote; label maps are named as the "
            f"cases, and end in {', '.join(LABEL_ENDINGS)}",
        )
    if len(found) < len(case_ids):
        left = len(case_ids) - len(found)
        logger.warning("%s: %d cases have no prediction and are left out", folder, left)
    return found


def _files(images: Sequence[Path], label: Path | None, reference: Path | None) -> CaseList:
    files = [open_voxels(path) for path in images]
    maps = {PREDICTION: label, REFERENCE: reference}
    labels = {kind: open_voxels(path) for kind, path in maps.items() if path is not None}
    grid = _grid(files[0])
    for file in (*files[1:], *labels.values()):
        if difference := grid.difference(_grid(file)):
            logger.warning("%s is on another grid than the image: %s", file.path, difference)
    case = ViewedCase(
        name=images[0].name,
        grid=grid,
        channels={file.path.name: partial(_image_of_file, file) for file in files},
        labels={kind: partial(_label_of_file, file, grid) for kind, file in labels.items()},
    )
    return CaseList(images[0].name, [case], {})


def _grid(file: VoxelFile) -> Grid:
    return Grid(file.shape_XYZ, file.affine)


def _image_of_file(file: VoxelFile) -> Any:
    return image_nifti(read_file(file), file.affine)


def _label_of_file(file: VoxelFile, grid: Grid) -> Any:
    return on_axes_of(label_nifti(read_file(file), file.affine, file.path), grid)
