"""Readers of datasets that a JSON list describes: Medical Segmentation Decathlon, MONAI datalist.

    {"name": "...", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"},
     "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz", "fold": 0}]}

In the Decathlon an image of several modalities is one 4D file. A MONAI datalist may name a list of
3D files instead. It gives the fold that each case is held out in, or lists cases under
"validation".

Sources: http://medicaldecathlon.com, dataset.json of its tasks; MONAI 1.6,
`monai.data.decathlon_datalist`, and the datalists of Auto3DSeg.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from segresmamba.data.formats.source import (
    SourceCase,
    SourceDataset,
    check_case_id,
    check_labels,
    check_unique,
    inside,
    read_description,
    read_json,
    strip_ending,
)
from segresmamba.errors import DataError


class _Entry(BaseModel):
    image: str | list[str]
    label: str
    fold: int | None = None
    patient: str = ""

    @property
    def case_id(self) -> str:
        return strip_ending(Path(self.label).name)

    def case(self, path: Path, channels: int) -> SourceCase:
        """The case in the list at `path`."""
        names = [self.image] if isinstance(self.image, str) else self.image
        if isinstance(self.image, str) and not os.path.exists(path.parent / self.image):
            # Lists of nnU-Net's first format are the Decathlon's, but each channel lies in a file
            # of its own, which they leave out.
            stem = strip_ending(self.image)
            ending = self.image.removeprefix(stem)
            split = [f"{stem}_{number:04d}{ending}" for number in range(channels)]
            # Unlike Path.exists, this also answers for a name that is too long for a file system.
            if os.path.exists(path.parent / split[0]):
                names = split
        stacked = isinstance(self.image, str) and channels > 1 and len(names) == 1
        if not stacked and len(names) != channels:
            raise DataError(
                "a case must have one image per channel",
                where=f"{path}: {self.label}",
                got=f"{len(names)} images for {channels} channels",
                remedy="name one file for each entry of `modality`, in that order, or one 4D file",
            )
        label = inside(path.parent, self.label, path)
        images = tuple(inside(path.parent, name, path) for name in names)
        return SourceCase(check_case_id(self.case_id, path), images, label, stacked, self.patient)


class _List(BaseModel):
    """The keys that are used. Lists may have any others."""

    name: str | None = None
    modality: dict[int, str] = {}
    labels: dict[str, str | int]
    training: list[_Entry]
    validation: list[_Entry] = []

    def label_values(self, path: Path) -> dict[str, int]:
        """Name to value. Lists in use have {"0": "background"} or {"background": 0}."""
        pairs = ((k, v) if isinstance(v, int) else (v, k) for k, v in self.labels.items())
        try:
            return {str(name): int(value) for name, value in pairs}
        except ValueError as error:
            raise DataError(
                "labels must pair values and names",
                where=f"{path}: labels",
                got=self.labels,
                remedy='write {"0": "background", "1": NAME, ...}',
            ) from error

    def held_out(self, path: Path) -> tuple[tuple[str, ...], ...]:
        """Case ids held out in each fold; none if the list has no folds."""
        if self.validation:
            return (tuple(sorted(entry.case_id for entry in self.validation)),)
        folds = {entry.fold for entry in self.training}
        if folds == {None}:
            return ()
        numbers = sorted(fold for fold in folds if fold is not None)
        if None in folds or numbers != list(range(len(numbers))) or len(numbers) < 2:
            raise DataError(
                "folds must be numbered 0, 1, 2, ..., and each case must have one",
                where=f"{path}: training.fold",
                got=sorted(str(fold) for fold in folds),
                remedy="give each case its fold, or none of them",
            )
        return tuple(
            tuple(sorted(entry.case_id for entry in self.training if entry.fold == number))
            for number in numbers
        )


def find_decathlon(source: Path) -> str | None:
    """Evidence of the Decathlon: dataset.json with `modality` and `training`, without folds."""
    content = read_json(source / "dataset.json")
    if "modality" in content and "training" in content and not _has_folds(content):
        return "dataset.json lists `training` under `modality`"
    return None


def find_monai(source: Path) -> str | None:
    """Evidence of a MONAI datalist: a JSON with `training` that is not the Decathlon's."""
    names = ", ".join(path.name for path in _datalists(source))
    return f"{names} lists `training`" if names else None


def read_decathlon(source: Path) -> SourceDataset:
    """List the training cases of a Medical Segmentation Decathlon task. No image is opened.

    Raises:
        DataError: If dataset.json is missing or contradicts itself.
    """
    return _read(source / "dataset.json")


def read_monai(source: Path) -> SourceDataset:
    """List the labelled cases of a MONAI datalist, with its folds. No image is opened.

    Args:
        source: The JSON, or a folder that holds exactly one.

    Raises:
        DataError: If the list is missing or contradicts itself.
    """
    found = _datalists(source)
    if len(found) != 1:
        raise DataError(
            "there must be one datalist",
            where=source,
            got=", ".join(path.name for path in found) or "none",
            remedy="give the path of the JSON itself",
        )
    return _read(found[0])


def _datalists(source: Path) -> list[Path]:
    candidates = [source] if source.is_file() else sorted(source.glob("*.json"))
    contents = {path: read_json(path) for path in candidates}
    return [
        path
        for path, content in contents.items()
        if "training" in content and (_has_folds(content) or "modality" not in content)
    ]


def _has_folds(content: dict[str, Any]) -> bool:
    training = content["training"] if isinstance(content["training"], list) else []
    # Decathlon's own lists have a "test" of bare paths; "validation" is MONAI's.
    folds = (isinstance(entry, dict) and "fold" in entry for entry in training)
    return bool(content.get("validation")) or any(folds)


def _read(path: Path) -> SourceDataset:
    described = read_description(
        path,
        _List,
        'it needs "labels": {"0": "background", "1": NAME, ...} and "training": '
        '[{"image": FILE, "label": FILE}, ...]',
    )
    entries = [*described.training, *described.validation]
    if described.modality:
        channels = tuple(name for _, name in sorted(described.modality.items()))
    else:  # a MONAI datalist need not name its channels
        first = described.training[0].image if described.training else []
        count = 1 if isinstance(first, str) else len(first)
        channels = tuple(f"channel {number}" for number in range(count))
    cases = tuple(entry.case(path, len(channels)) for entry in entries)
    return SourceDataset(
        described.name or path.parent.name,
        channels,
        check_labels(described.label_values(path), path),
        check_unique(cases, path),
        path,
        held_out=described.held_out(path),
    )
