"""Readers of datasets that a JSON list describes: Medical Segmentation Decathlon, MONAI datalist.

    {"name": "...", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"},
     "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz", "fold": 0}]}

In the Decathlon an image of several modalities is one 4D file. A MONAI datalist may name a list of
3D files instead, says the fold that each case is held out in, or lists cases under "validation".

Sources: http://medicaldecathlon.com, dataset.json of its tasks; MONAI 1.6,
`monai.data.decathlon_datalist`, and the datalists of Auto3DSeg.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from segresmamba.data.formats.source import (
    SourceCase,
    SourceDataset,
    check_case_id,
    check_labels,
    check_unique,
    inside,
    strip_ending,
)
from segresmamba.errors import DataError


class _Entry(BaseModel):
    image: str | list[str]
    label: str
    fold: int | None = None
    patient: str = ""


class _List(BaseModel):
    """The keys that are used; others are allowed."""

    name: str | None = None
    modality: dict[int, str] = {}
    labels: dict[str, str | int]
    training: list[_Entry]
    validation: list[_Entry] = []


def find_decathlon(source: Path) -> str | None:
    """What speaks for the Decathlon: dataset.json with `modality` and `training`, no folds."""
    content = read_json(source / "dataset.json")
    if "modality" in content and "training" in content and not _has_folds(content):
        return "dataset.json lists `training` under `modality`"
    return None


def find_monai(source: Path) -> str | None:
    """What speaks for a MONAI datalist: a JSON with `training` that is no Decathlon's."""
    found = _datalists(source)
    if not found:
        return None
    return f"{', '.join(path.name for path in found)} lists `training`"


def read_decathlon(source: Path) -> SourceDataset:
    """List the training cases of a Medical Segmentation Decathlon task. No image is opened.

    Raises:
        DataError: If dataset.json is missing or contradicts itself.
    """
    return _read(source / "dataset.json", "decathlon")


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
    return _read(found[0], "monai")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


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
    return bool(content.get("validation")) or any("fold" in entry for entry in training)


def _read(path: Path, kind: str) -> SourceDataset:
    try:
        described = _List.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            "the list of cases cannot be read",
            where=path,
            got=error.strerror,
            remedy=f"--format {kind} needs it",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            "the list of cases is not as its format describes it",
            where=f"{path}: {'.'.join(str(part) for part in first['loc'])}",
            got=first["msg"],
            remedy='it needs "labels": {"0": "background", "1": NAME, ...} and "training": '
            '[{"image": FILE, "label": FILE}, ...]',
        ) from error
    entries = [*described.training, *described.validation]
    channels = _channels(described, path)
    cases = check_unique(tuple(_case(entry, path, len(channels)) for entry in entries), path)
    return SourceDataset(
        described.name or path.parent.name,
        channels,
        check_labels(_labels(described, path), path),
        cases,
        path,
        held_out=_held_out(described, path),
    )


def _channels(described: _List, path: Path) -> tuple[str, ...]:
    if described.modality:
        return tuple(name for _, name in sorted(described.modality.items()))
    first = described.training[0].image if described.training else []
    count = 1 if isinstance(first, str) else len(first)
    return tuple(f"channel {number}" for number in range(count))


def _labels(described: _List, path: Path) -> dict[str, int]:
    """Both directions are in use: {"0": "background"} and {"background": 0}."""
    try:
        return {
            str(key if isinstance(value, int) else value): int(
                value if isinstance(value, int) else key
            )
            for key, value in described.labels.items()
        }
    except ValueError as error:
        raise DataError(
            "labels must pair values and names",
            where=f"{path}: labels",
            got=described.labels,
            remedy='write {"0": "background", "1": NAME, ...}',
        ) from error


def _case(entry: _Entry, path: Path, channels: int) -> SourceCase:
    names = [entry.image] if isinstance(entry.image, str) else entry.image
    stacked = isinstance(entry.image, str) and channels > 1
    if not stacked and len(names) != channels:
        raise DataError(
            "a case must have one image per channel",
            where=f"{path}: {entry.label}",
            got=f"{len(names)} images for {channels} channels",
            remedy="name one file for each of modality, in this order, or one 4D file",
        )
    label = inside(path.parent, entry.label, path)
    images = tuple(inside(path.parent, name, path) for name in names)
    case_id = check_case_id(strip_ending(label.name), path)
    return SourceCase(case_id, images, label, stacked, entry.patient)


def _held_out(described: _List, path: Path) -> tuple[tuple[str, ...], ...]:
    def ids(entries: list[_Entry]) -> tuple[str, ...]:
        return tuple(sorted(strip_ending(Path(entry.label).name) for entry in entries))

    if described.validation:
        return (ids(described.validation),)
    folds = {entry.fold for entry in described.training}
    if folds == {None}:
        return ()
    numbers = sorted(fold for fold in folds if fold is not None)
    if None in folds or numbers != list(range(len(numbers))) or len(numbers) < 2:
        raise DataError(
            "folds must be numbered 0, 1, 2, ... and every case have one",
            where=f"{path}: training.fold",
            got=sorted(str(fold) for fold in folds),
            remedy="give each case its fold, or none of them",
        )
    return tuple(
        ids([entry for entry in described.training if entry.fold == number]) for number in numbers
    )
