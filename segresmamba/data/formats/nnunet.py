"""Reader of nnU-Net's raw format.

    <dataset>/dataset.json                     channel_names, labels, numTraining, file_ending
    <dataset>/imagesTr/<case>_0000.nii.gz      one file per channel: _0000, _0001, ...
    <dataset>/labelsTr/<case>.nii.gz

Instead of the two folders, dataset.json may name the files itself:
"dataset": {"<case>": {"images": [...], "label": "..."}}.
Source: nnU-Net v2, documentation/dataset_format.md.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from pydantic import BaseModel, PositiveInt

from segresmamba.data.formats.source import (
    VOLUME_ENDINGS,
    SourceCase,
    SourceDataset,
    check_case_id,
    check_labels,
    read_description,
    read_json,
)
from segresmamba.data.volumes.voxel_file import FOR_2D
from segresmamba.errors import DataError

# Those of nnU-Net's NaturalImage2DIO. A .tif may be a stack, which its reader finds out.
_ENDINGS_OF_2D = {".png", ".bmp", ".jpg", ".jpeg"}

logger = logging.getLogger(__name__)


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


def find_nnunet(source: Path) -> str | None:
    """Evidence that a folder is an nnU-Net raw dataset: two keys of dataset.json."""
    content = read_json(source / "dataset.json")
    if "channel_names" in content and "file_ending" in content:
        return "dataset.json has `channel_names` and `file_ending`"
    return None


def read_nnunet(folder: Path) -> SourceDataset:
    """List the training cases of an nnU-Net raw dataset. No image is opened.

    Raises:
        DataError: If dataset.json is missing, or contradicts itself or the folder.
    """
    path = folder / "dataset.json"
    described = read_description(
        path,
        _DatasetJson,
        "give the folder of an nnU-Net v2 raw dataset: dataset.json with channel_names, labels, "
        "numTraining and file_ending, next to imagesTr/ and labelsTr/",
    )
    channels = sorted(described.channel_names.items())
    if not channels or [number for number, _ in channels] != list(range(len(channels))):
        raise DataError(
            "channels must be numbered 0, 1, 2, ...",
            where=f"{path}: channel_names",
            got=described.channel_names,
            remedy="number them as the files are: channel 0 is <case>_0000",
        )
    declared = _plain_labels(described, path)
    if "ignore" in declared:
        check_labels(declared, path)
    ignored = declared.pop("ignore", None)
    labels = check_labels(declared, path)
    if (ending := described.file_ending.lower()) not in VOLUME_ENDINGS:
        flat = ending in _ENDINGS_OF_2D
        raise DataError(
            "the dataset has 2D images" if flat else "files of this kind cannot be read",
            where=f"{path}: file_ending",
            got=described.file_ending,
            remedy=f"convert volumes; {FOR_2D}"
            if flat
            else f"convert the files to one of {', '.join(VOLUME_ENDINGS)}",
        )
    cases = (
        _listed_cases(folder, described.dataset, len(channels))
        if described.dataset
        else _found_cases(folder, described.file_ending, len(channels))
    )
    if len(cases) != described.numTraining:
        # nnU-Net itself only counts the files, so that many datasets have a wrong number there.
        logger.warning(
            "%s: numTraining is %d, but %d cases were found; all of those are taken",
            path,
            described.numTraining,
            len(cases),
        )
    names = tuple(name for _, name in channels)
    return SourceDataset(
        described.name or folder.name, names, labels, cases, path, ignore_value=ignored
    )


def _plain_labels(described: _DatasetJson, path: Path) -> dict[str, int]:
    """A name for each single value. Regions are unions of values, which training puts together."""
    single = {name: value for name, value in described.labels.items() if isinstance(value, int)}
    if len(single) == len(described.labels):
        return single
    regions = {
        name: [values] if isinstance(values, int) else values
        for name, values in described.labels.items()
        if values not in (0, [0]) and name != "ignore"
    }
    words = (f"{name}:[{','.join(map(str, values))}]" for name, values in regions.items())
    logger.warning(
        "%s declares regions. The store keeps the single values; to train on the regions, give "
        "data.regions={%s}",
        path,
        ",".join(words),
    )
    names = {values[0]: name for name, values in regions.items() if len(values) == 1}
    every = sorted({value for values in regions.values() for value in values})
    plain = {"background": 0} | {names.get(value, f"label {value}"): value for value in every}
    return plain | {name: value for name, value in single.items() if name == "ignore"}


def _listed_cases(folder: Path, listed: dict[str, _Files], channels: int) -> tuple[SourceCase, ...]:
    cases = []
    for case_id, files in sorted(listed.items()):
        if len(files.images) != channels:
            raise DataError(
                "a case must have one image per channel",
                where=f"{folder / 'dataset.json'}: dataset.{case_id}.images",
                got=f"{len(files.images)} images for {channels} channels",
                remedy="name one file for each of channel_names, in this order",
            )
        check_case_id(case_id, folder / "dataset.json")
        # Absolute paths stay as they are: the files may lie anywhere.
        images = tuple(folder / image for image in files.images)
        cases.append(SourceCase(case_id, images, folder / files.label))
    return tuple(cases)


def _found_cases(folder: Path, ending: str, channels: int) -> tuple[SourceCase, ...]:
    """Cases with an image or a label in the folders. The converter reports missing files."""
    images, labels = folder / "imagesTr", folder / "labelsTr"
    case_ids = {name.removesuffix(ending) for name in _names(labels, ending)}
    numbers = "0000" if channels == 1 else f"0000 to {channels - 1:04d}"
    for name in _names(images, ending):
        match = re.fullmatch(r"(.+)_(\d{4})", name.removesuffix(ending))
        if match is None or int(match[2]) >= channels:
            raise DataError(
                "an image belongs to no declared channel",
                where=images / name,
                got=name,
                remedy=f"name it <case>_{numbers}{ending}, or declare its channel in dataset.json",
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
    # macOS leaves files such as ._case_0000.nii.gz beside those that it copies.
    return sorted(name for name in names if name.endswith(ending) and not name.startswith("."))
