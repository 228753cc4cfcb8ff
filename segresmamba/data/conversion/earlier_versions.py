"""Cases that an earlier version misread, as their files show.

Until reader 2, ITK alone put DICOM series together. It took the grid of a series from its first and
last slices, and the type of voxels from whichever file it opened first. Whether that was wrong is
seen from the headers of the source files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segresmamba.data.formats.source import VOLUME_ENDINGS
from segresmamba.data.store.manifest import CaseRecord
from segresmamba.data.volumes import geometry
from segresmamba.data.volumes.voxel_file import open_voxels
from segresmamba.errors import DataError

READER = 2
"""Version of what reads the source files; records keep it. It grows where misreading ends."""
_SAME_GRID_VOXELS = 0.1


def series_folders(record: CaseRecord, source: Path) -> list[Path]:
    """The folders of DICOM series that an earlier version made a case from, first channel first."""
    if record.reader >= READER:
        return []
    files = [source / file.path for file in record.source]
    dicom = [path for path in files if not path.name.lower().endswith(VOLUME_ENDINGS)]
    # The label has been a file of another kind, and nothing else is not a volume.
    return list(dict.fromkeys(path.parent for path in dicom))


def fault_of_earlier_version(record: CaseRecord, folders: list[Path]) -> str:
    """What an earlier version did wrong with a case's DICOM series; empty if nothing.

    Args:
        record: The case's record.
        folders: What `series_folders` found. They must be there.
    """
    for folder in folders:
        try:
            file = open_voxels(folder)
            varies = _rescale_varies(folder)
        except DataError as error:
            return f"its series {folder} should have been refused: {error.problem} ({error.got})"
        if varies:
            return f"slices of {folder} have a rescale of their own, and values were wrapped"
        if folder == folders[0] and _moved(record, file.shape_XYZ, file.affine):
            return f"the slices of {folder} were put on another grid than their headers say"
    return ""


def _rescale_varies(folder: Path) -> bool:
    """Whether ITK's type for all slices was not that of each, or frames had their own rescale."""
    from segresmamba.data.volumes.dicom_frames import frame_count, read_frames, read_header
    from segresmamba.data.volumes.dicom_series import only_dicom_file, read_slices

    file = only_dicom_file(folder)
    if file is None:
        return len({header.pixel_type for header in read_slices(folder)}) > 1
    header = read_header(file)
    if frame_count(header) == 1:
        return False
    return len({(frame.slope, frame.intercept) for frame in read_frames(header, file)}) > 1


def _moved(record: CaseRecord, shape_XYZ: tuple[int, ...], affine: geometry.Affine) -> bool:
    shape_DHW, expected = geometry.ras_grid(shape_XYZ, affine)
    transform = record.grid_transform
    if shape_DHW != (transform.full_DHW if transform else record.shape_DHW):
        return True
    if transform:
        expected = transform.affine(expected)
    stored = np.array(record.affine)
    shape_xyz = record.shape_DHW[::-1]
    return geometry.corner_distance_voxels(shape_xyz, expected, stored) > _SAME_GRID_VOXELS
