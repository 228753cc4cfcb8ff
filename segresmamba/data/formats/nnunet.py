"""Reader of nnU-Net's raw format.

    <dataset>/dataset.json                     channel_names, labels, numTraining, file_ending
    <dataset>/imagesTr/<case>_0000.nii.gz      one file per channel: _0000, _0001, ...
    <dataset>/labelsTr/<case>.nii.gz

Source: nnU-Net v2, documentation/dataset_format.md. Instead of the two folders, dataset.json may
name the files itself: "dataset": {"<case>": {"images": [...], "label": "..."}}.
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, PositiveInt, ValidationError

from segresmamba.data.formats.source import SourceCase, SourceDataset, check_case_id, check_labels
from segresmamba.errors import DataError

FILE_ENDINGS = (".nii.gz", ".nii")


class _Files(BaseModel):
    images: list[str]
    label: str


class _DatasetJson(BaseModel):
    """The keys of dataset.json that are used; nnU-Net allows any others."""

    name: str | None = None
    channel_names: dict[int, str]
    labels: dict[str, int | list[int]]
    numTraining: PositiveInt  # nnU-Net's spelling
    file_ending: str
    dataset: dict[str, _Files] | None = None


def read_nnunet(folder: Path) -> SourceDataset:
    """List the training cases of an nnU-Net raw dataset. No image is opened.

    Raises:
        DataError: If dataset.json is missing or contradicts itself or the folder.
    """
    path = folder / "dataset.json"
    described = _read_json(path)
    channels = _channel_names(described, path)
    labels = check_labels(_plain_labels(described, path), path)
    if described.file_ending not in FILE_ENDINGS:
        raise DataError(
            "only NIfTI files can be read",
            where=f"{path}: file_ending",
            got=described.file_ending,
            remedy=f"convert the files to one of {', '.join(FILE_ENDINGS)}",
        )
    cases = (
        _listed_cases(folder, described.dataset, len(channels))
        if described.dataset
        else _found_cases(folder, described.file_ending, len(channels))
    )
    if len(cases) != described.numTraining:
        raise DataError(
            "the number of training cases is not the declared one",
            where=f"{path}: numTraining",
            got=f"{described.numTraining} declared, {len(cases)} found",
            remedy="restore the missing files, or correct numTraining",
        )
    return SourceDataset(described.name or folder.name, channels, labels, cases, path)


def _read_json(path: Path) -> _DatasetJson:
    remedy = (
        "give the folder of an nnU-Net v2 raw dataset: dataset.json with channel_names, labels, "
        "numTraining and file_ending, next to imagesTr/ and labelsTr/"
    )
    try:
        return _DatasetJson.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            "dataset.json cannot be read", where=path, got=error.strerror, remedy=remedy
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(
            "dataset.json is not as nnU-Net describes it",
            where=f"{path}: {key}" if key else path,
            got=first["msg"],
            remedy=remedy,
        ) from error


def _channel_names(described: _DatasetJson, path: Path) -> tuple[str, ...]:
    numbered = sorted(described.channel_names.items())
    if not numbered or [number for number, _ in numbered] != list(range(len(numbered))):
        raise DataError(
            "channels must be numbered 0, 1, 2, ...",
            where=f"{path}: channel_names",
            got=described.channel_names,
            remedy="number them as the files are: channel 0 is <case>_0000",
        )
    return tuple(name for _, name in numbered)


def _plain_labels(described: _DatasetJson, path: Path) -> dict[str, int]:
    plain = {name: value for name, value in described.labels.items() if isinstance(value, int)}
    if len(plain) == len(described.labels) and "ignore" not in plain:
        return plain
    raise DataError(
        "regions and ignore labels cannot be declared here",
        where=f"{path}: labels",
        got=described.labels,
        remedy="declare every value that occurs under a name of its own; regions are set for "
        "training, with data.regions",
    )


def _listed_cases(folder: Path, listed: dict[str, _Files], channels: int) -> tuple[SourceCase, ...]:
    for case_id, files in listed.items():
        if len(files.images) != channels:
            raise DataError(
                "a case must have one image per channel",
                where=f"{folder / 'dataset.json'}: dataset.{case_id}.images",
                got=f"{len(files.images)} images for {channels} channels",
                remedy="name one file for each of channel_names, in this order",
            )
    return tuple(
        SourceCase(
            check_case_id(case_id, folder / "dataset.json"),
            tuple(folder / image for image in files.images),
            folder / files.label,
        )
        for case_id, files in sorted(listed.items())
    )


def _found_cases(folder: Path, ending: str, channels: int) -> tuple[SourceCase, ...]:
    """Cases of which an image or a label is there; what else they need, the converter asks for."""
    images, labels = folder / "imagesTr", folder / "labelsTr"
    case_ids = {name.removesuffix(ending) for name in _names(labels, ending)}
    for name in _names(images, ending):
        match = re.fullmatch(r"(.+)_(\d{4})", name.removesuffix(ending))
        if match is None or int(match[2]) >= channels:
            raise DataError(
                "an image belongs to no declared channel",
                where=images / name,
                got=name,
                remedy=f"name it <case>_0000{ending} to <case>_{channels - 1:04d}{ending}, "
                "or declare its channel in dataset.json",
            )
        case_ids.add(match[1])
    return tuple(
        SourceCase(
            check_case_id(case_id, images),
            tuple(images / f"{case_id}_{channel:04d}{ending}" for channel in range(channels)),
            labels / f"{case_id}{ending}",
        )
        for case_id in sorted(case_ids)
    )


def _names(folder: Path, ending: str) -> list[str]:
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise DataError(
            "a folder of the dataset cannot be listed",
            where=folder,
            got=error.strerror,
            remedy="an nnU-Net raw dataset has imagesTr/ and labelsTr/",
        ) from error
    return sorted(name for name in names if name.endswith(ending) and not name.startswith("."))
