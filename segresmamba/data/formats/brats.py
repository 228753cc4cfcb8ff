"""Reader of BraTS folders: four modalities and a label per case.

    2021    BraTS2021_00000/BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz
    2023    BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz

Both come out with the same channels and labels, so that one network serves both: enhancing tumour
is 4 in the files of 2021, 3 in those of 2023 and in the store. The regions TC, WT and ET are
those of configs/data/brats.yaml.
"""

from __future__ import annotations

import re
from pathlib import Path

from segresmamba.data.formats.source import SourceCase, SourceDataset, check_case_id, check_unique

CHANNELS = ("T1", "T1ce", "T2", "FLAIR")
LABELS = {"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 3}
_SUFFIXES = {
    2021: ("_t1", "_t1ce", "_t2", "_flair", "_seg"),
    2023: ("-t1n", "-t1c", "-t2w", "-t2f", "-seg"),
}
_PATTERNS = {
    2021: re.compile(r"BraTS(20|2021)_.+"),
    2023: re.compile(r"BraTS-[A-Za-z]+-\d+-\d{3}"),
}
_FIRST_ENHANCING = 4  # of 2021


def find_brats(source: Path, year: int) -> str | None:
    """What speaks for the challenge of that year: the names of the case folders."""
    found = _folders(source, year)
    return f"{len(found)} folders such as {found[0].name}" if found else None


def read_brats(source: Path, year: int) -> SourceDataset:
    """List the cases of a BraTS training folder. No image is opened.

    Raises:
        DataError: If there is no case, or a name that cannot be used.
    """
    cases = check_unique(tuple(_case(folder, year) for folder in _folders(source, year)), source)
    renumbered = {_FIRST_ENHANCING: LABELS["enhancing"]} if year == 2021 else {}
    return SourceDataset(source.name, CHANNELS, dict(LABELS), cases, source, renumbered=renumbered)


def _folders(source: Path, year: int) -> list[Path]:
    if not source.is_dir():
        return []
    return sorted(
        path for path in source.iterdir() if path.is_dir() and _PATTERNS[year].fullmatch(path.name)
    )


def _case(folder: Path, year: int) -> SourceCase:
    *images, label = (_file(folder, suffix) for suffix in _SUFFIXES[year])
    # BraTS-GLI-<patient>-<visit>; 2021 has one visit each.
    patient = folder.name.rpartition("-")[0] if year == 2023 else ""
    return SourceCase(check_case_id(folder.name, folder), tuple(images), label, patient=patient)


def _file(folder: Path, suffix: str) -> Path:
    """Packed or not; where neither is there, the converter names the packed one."""
    plain = folder / f"{folder.name}{suffix}.nii"
    return plain if plain.exists() else plain.with_name(plain.name + ".gz")
