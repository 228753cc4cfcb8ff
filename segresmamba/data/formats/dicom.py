"""Reader of DICOM series with a label volume beside them.

<dataset>/dataset.json                   {"channel_names": {"0": "CT"}, "labels": {...}}
<dataset>/<case>/CT/*                    one series per channel, in a folder of its name
<dataset>/<case>/label.nii.gz            or label.nii, label.nrrd, label.mha
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from segresmamba.data.formats.datalist import read_json
from segresmamba.data.formats.source import (
    VOLUME_ENDINGS,
    SourceCase,
    SourceDataset,
    check_case_id,
    check_labels,
    check_unique,
)
from segresmamba.errors import DataError

_MAGIC_AT = 128


class _DatasetJson(BaseModel):
    name: str | None = None
    channel_names: dict[int, str]
    labels: dict[str, int]


def find_dicom(source: Path) -> str | None:
    """What speaks for it: a file that begins as DICOM does, two folders down."""
    for path in source.glob("*/*/*"):
        if path.is_file():
            with path.open("rb") as file:
                file.seek(_MAGIC_AT)
                if file.read(4) == b"DICM":
                    return f"{path.relative_to(source)} is a DICOM file"
            return None
    return None


def read_dicom(source: Path) -> SourceDataset:
    """List the cases of a folder of DICOM series. No image is opened.

    Raises:
        DataError: If dataset.json is missing or incomplete, or there is no case.
    """
    path = source / "dataset.json"
    try:
        described = _DatasetJson.model_validate(read_json(path))
    except ValidationError as error:
        raise DataError(
            "channels and labels are not declared",
            where=path,
            got=error.errors()[0]["msg"],
            remedy='write {"channel_names": {"0": "CT"}, "labels": {"background": 0, ...}} there',
        ) from error
    channels = tuple(name for _, name in sorted(described.channel_names.items()))
    cases = tuple(
        SourceCase(
            check_case_id(folder.name, source),
            tuple(folder / check_case_id(channel, path) for channel in channels),
            _label(folder),
        )
        for folder in source.iterdir()
        if folder.is_dir()
    )
    labels = check_labels(described.labels, path)
    return SourceDataset(
        described.name or source.name, channels, labels, check_unique(cases, source), path
    )


def _label(folder: Path) -> Path:
    names = [folder / f"label{ending}" for ending in VOLUME_ENDINGS]
    return next((path for path in names if path.exists()), names[0])
