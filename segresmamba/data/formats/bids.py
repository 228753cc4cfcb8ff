"""Reader of BIDS datasets with segmentations as derivatives.

    sub-01/[ses-1/]anat/sub-01[_ses-1]_T1w.nii.gz              one file per suffix: a channel
    derivatives/<name>/sub-01/[ses-1/]anat/..._dseg.nii.gz     labels; or ..._mask.nii.gz
    derivatives/<name>/..._dseg.tsv                            columns index and name

A mask needs no table: its value 1 is called `mask`. Source: BIDS 1.10, Imaging derivatives.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from segresmamba.data.formats.source import (
    SourceCase,
    SourceDataset,
    check_case_id,
    check_labels,
    check_unique,
    strip_ending,
)
from segresmamba.errors import DataError

_LABEL = re.compile(r".*_(dseg|mask)\.nii(\.gz)?")
_IMAGE = re.compile(r".*_[A-Za-z0-9]+\.nii(\.gz)?")


def find_bids(source: Path) -> str | None:
    """Evidence of BIDS: segmentations of subjects under derivatives/."""
    labels = _labels(source)
    return f"derivatives/ holds {len(labels)} segmentations of sub-*" if labels else None


def read_bids(source: Path) -> SourceDataset:
    """List the subjects, or their sessions, that have a segmentation. No image is opened.

    Raises:
        DataError: If one has two segmentations, no image, or the labels are not declared.
    """
    labels = _labels(source)
    by_session: dict[Path, Path] = {}
    for label in labels:
        parts = label.relative_to(source).parts[2:-1]
        session = Path(*(part for part in parts if re.match("(sub|ses)-", part)))
        # Which of two segmentations is right, nobody but the user knows.
        if session in by_session:
            raise DataError(
                "a case has two segmentations",
                where=label,
                got=by_session[session].name,
                remedy="keep one of them under derivatives/",
            )
        by_session[session] = label
    images = {session: _images(source / session / "anat") for session in by_session}
    channels = tuple(sorted({suffix for found in images.values() for suffix in found}))
    if not channels:
        raise DataError(
            "no case has an image",
            where=source,
            got=f"{len(labels)} segmentations",
            remedy="images lie in sub-*/[ses-*/]anat/",
        )
    cases = []
    for session, label in by_session.items():
        stem, folder = "_".join(session.parts), source / session / "anat"
        # A missing channel is listed under the name that it should have: the converter reports it.
        files = tuple(
            images[session].get(channel, folder / f"{stem}_{channel}.nii.gz")
            for channel in channels
        )
        case_id = check_case_id(stem, label)
        cases.append(SourceCase(case_id, files, label, patient=session.parts[0]))
    declared = _declared(source, labels)
    unique = check_unique(tuple(cases), source)
    return SourceDataset(source.name, channels, declared, unique, source)


def _labels(source: Path) -> list[Path]:
    found = source.glob("derivatives/*/sub-*/**/*.nii*")
    return sorted(path for path in found if _LABEL.fullmatch(path.name))


def _images(folder: Path) -> dict[str, Path]:
    """The files of one session by suffix, such as T1w."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("sub-*.nii*")):
        if not _IMAGE.fullmatch(path.name) or _LABEL.fullmatch(path.name):
            continue
        suffix = strip_ending(path.name).rpartition("_")[2]
        if suffix in found:
            raise DataError(
                "a case has two images of one kind",
                where=path,
                got=f"{found[suffix].name} and {path.name}",
                remedy="keep one of them in anat/",
            )
        found[suffix] = path
    return found


def _declared(source: Path, labels: list[Path]) -> dict[str, int]:
    """Name to value, from the table of the labels."""
    if all("_mask." in label.name for label in labels):
        return {"background": 0, "mask": 1}
    tables = sorted(source.glob("derivatives/**/*dseg.tsv"))
    if not tables:
        raise DataError(
            "the names of the labels are not declared",
            where=source / "derivatives",
            got="no *dseg.tsv",
            remedy="write dseg.tsv there, a table with the columns index and name",
        )
    try:
        with tables[0].open(newline="", encoding="utf-8-sig") as file:
            rows = {row["name"]: int(row["index"]) for row in csv.DictReader(file, delimiter="\t")}
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise DataError(
            "the table of labels cannot be read",
            where=tables[0],
            got=f"{type(error).__name__}: {error}",
            remedy="separate the columns index and name by tabs",
        ) from error
    # The table may leave out the background, or give it another name.
    without_background = {name: value for name, value in rows.items() if value}
    return check_labels({"background": 0, **without_background}, tables[0])
