"""Reader of DICOM series with a label volume beside them.

<dataset>/dataset.json                   {"channel_names": {"0": "CT"}, "labels": {...}}
<dataset>/<case>/CT/*                    one series per channel, in a folder of its name
<dataset>/<case>/label.nii.gz            or of another kind; or label.dcm or label/, a DICOM SEG

A label volume does not name its classes, so dataset.json declares them, with nnU-Net's keys.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from pydantic import BaseModel

from segresmamba.data.formats.source import (
    VOLUME_ENDINGS,
    SourceCase,
    SourceDataset,
    check_case_id,
    check_labels,
    check_unique,
    read_description,
)

_LOOKED_AT = 100  # files
_MAGIC_AT = 128  # bytes of preamble, which may hold anything


class _DatasetJson(BaseModel):
    name: str | None = None
    channel_names: dict[int, str]
    labels: dict[str, int]


def find_dicom(source: Path) -> str | None:
    """Evidence of DICOM series: a file that begins as DICOM does, two folders down."""
    files = (path for path in source.glob("*/*/*") if path.is_file())
    # Files such as .DS_Store may come first; a dataset of another format may have very many.
    for path in islice(files, _LOOKED_AT):
        with path.open("rb") as file:
            file.seek(_MAGIC_AT)
            if file.read(4) == b"DICM":
                return f"{path.relative_to(source)} is a DICOM file"
    return None


def read_dicom(source: Path) -> SourceDataset:
    """List the cases of a folder of DICOM series. No image is opened.

    Raises:
        DataError: If dataset.json is missing or incomplete, or there is no case.
    """
    path = source / "dataset.json"
    described = read_description(
        path,
        _DatasetJson,
        'write {"channel_names": {"0": "CT"}, "labels": {"background": 0, ...}} there',
    )
    channels = tuple(name for _, name in sorted(described.channel_names.items()))
    cases = []
    for folder in (path for path in source.iterdir() if path.is_dir()):
        images = tuple(folder / check_case_id(channel, path) for channel in channels)
        labels = [folder / f"label{ending}" for ending in (*VOLUME_ENDINGS, ".dcm", "")]
        label = next((path for path in labels if path.exists()), labels[0])
        cases.append(SourceCase(check_case_id(folder.name, source), images, label))
    return SourceDataset(
        described.name or source.name,
        channels,
        check_labels(described.labels, path),
        check_unique(tuple(cases), source),
        path,
    )
