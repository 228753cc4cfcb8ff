"""Reader of BraTS folders: four modalities and a label per case.

    2021    BraTS2021_00000/BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz
    2023    BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz

Both get the same channels and labels, so that one network serves both: enhancing tumour is 4 in the
files of 2021, and 3 in those of 2023 and in the store. configs/data/brats.yaml defines the regions
TC, WT and ET.
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
_ENHANCING_2021 = 4


def find_brats(source: Path, year: int) -> str | None:
    """Evidence of the challenge of that year: the names of the case folders."""
    found = _folders(source, year)
    return f"{len(found)} folders such as {found[0].name}" if found else None


def read_brats(source: Path, year: int) -> SourceDataset:
    """List the cases of a BraTS training folder. No image is opened.

    Raises:
        DataError: If there is no case, or a name that cannot be used.
    """
    cases = []
    for folder in _folders(source, year):
        files = []
        for suffix in _SUFFIXES[year]:
            path = folder / f"{folder.name}{suffix}.nii"
            # If both are missing, errors name the compressed file.
            files.append(path if path.exists() else path.with_name(f"{path.name}.gz"))
        *images, label = files
        # BraTS-GLI-<patient>-<visit>; in 2021 each patient has one visit.
        patient = folder.name.rpartition("-")[0] if year == 2023 else ""
        case_id = check_case_id(folder.name, folder)
        cases.append(SourceCase(case_id, tuple(images), label, patient=patient))
    return SourceDataset(
        source.name,
        CHANNELS,
        dict(LABELS),
        check_unique(tuple(cases), source),
        source,
        renumbered={_ENHANCING_2021: LABELS["enhancing"]} if year == 2021 else {},
    )


def _folders(source: Path, year: int) -> list[Path]:
    if not source.is_dir():
        return []
    return sorted(
        path for path in source.iterdir() if path.is_dir() and _PATTERNS[year].fullmatch(path.name)
    )
