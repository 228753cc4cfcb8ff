"""Read the label map of one case onto the grid of its image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segresmamba.data.volumes import geometry
from segresmamba.data.volumes.common_grid import FIRST, on_grid
from segresmamba.data.volumes.geometry import OriginalGrid
from segresmamba.data.volumes.mapped_arrays import mapped_zeros
from segresmamba.data.volumes.voxel_file import open_label
from segresmamba.errors import DataError


def read_label(
    path: Path,
    labels: dict[str, int],
    grid: OriginalGrid,
    *,
    renumbered: dict[int, int] | None = None,
    resample_mismatched: bool = False,
    other: str = FIRST,
) -> tuple[npt.NDArray[Any], OriginalGrid]:
    """Read a label map.

    Args:
        path: A file with integers; its dtype may be a floating one.
        labels: Declared names and values.
        grid: Grid of the image, which the label must have too.
        renumbered: Value in the file to declared value, where they differ.
        resample_mismatched: Resample a label on another grid onto the image's, instead of refusing
            it.
        other: What has the grid, for errors.

    Returns:
        (D, H, W) array of uint8, or int16 where declared values exceed 255, on the RAS grid; and
        the grid of the file (of the image, if the label was resampled) with the label's dtype.

    Raises:
        DataError: As `volume.read_volume`; also if values are not integers or not declared.
    """
    file = open_label(path, labels, grid)
    label = on_grid(file, grid, other, resample=resample_mismatched, order=0)
    highest = max(labels.values())
    declared = np.isin(np.arange(highest + 1), list(labels.values()))
    dtype = np.uint8 if highest <= np.iinfo(np.uint8).max else np.int16
    shape_DHW, _ = geometry.ras_grid(label.shape_XYZ, label.affine)
    label_DHW = mapped_zeros(shape_DHW, dtype)
    label_XYZ = geometry.in_file_axes(label_DHW, label.affine)
    undeclared: set[float] = set()
    fractions: list[float] = []
    for index, plane_XY in enumerate(label.planes()):
        if plane_XY.dtype.kind == "f":
            fractions += plane_XY[plane_XY != np.rint(plane_XY)].tolist()
        values_XY = _renumber(plane_XY, renumbered or {}, path)
        undeclared |= _undeclared(values_XY, declared)
        with np.errstate(invalid="ignore"):  # values that the dtype cannot hold are refused below
            label_XYZ[..., index] = values_XY
    _refuse_values(path, fractions, undeclared, labels)
    return label_DHW, OriginalGrid.from_header(label.header, label.header.get_data_dtype())


def _undeclared(values_XY: npt.NDArray[Any], declared: npt.NDArray[np.bool_]) -> set[float]:
    """The values of a plane that are not declared.

    Args:
        values_XY: The plane.
        declared: Whether each value from 0 to the highest declared one is declared.
    """
    highest = len(declared) - 1
    undeclared: set[float] = set()
    if values_XY.min() < 0 or values_XY.max() > highest:
        found = np.unique(values_XY)
        undeclared |= set(found[(found < 0) | (found > highest)].tolist())
    if not declared.all():
        found = np.unique(np.clip(values_XY, 0, highest).astype(np.intp))
        undeclared |= set(found[~declared[found]].tolist())
    return undeclared


def _refuse_values(
    path: Path, fractions: list[float], undeclared: set[float], labels: dict[str, int]
) -> None:
    if fractions:
        raise DataError(
            "a label has values that are not integers",
            where=path,
            got=f"{len(fractions)} voxels, such as {fractions[0]:g}",
            remedy="export the label again with nearest-neighbour interpolation",
        )
    if undeclared:
        raise DataError(
            "a label has undeclared values",
            where=path,
            got=", ".join(f"{value:g}" for value in sorted(undeclared)[:10]),
            remedy="declare the value or correct the file; declared are "
            + ", ".join(f"{value} ({name})" for name, value in list(labels.items())[:10])
            + (f" and {len(labels) - 10} others" if len(labels) > 10 else ""),
        )


def _renumber(
    values_XY: npt.NDArray[Any], renumbered: dict[int, int], path: Path
) -> npt.NDArray[Any]:
    """Give voxels their declared values, and refuse values that the format does not write.

    In BraTS 2021, 4 in the file becomes 3; so a 3 in the file is a mistake, not enhancing tumour.
    """
    taken = [new for new in renumbered.values() if new not in renumbered]
    if any((values_XY == value).any() for value in taken):
        raise DataError(
            "a label has undeclared values",
            where=path,
            got=", ".join(map(str, taken)),
            remedy=f"this format's files hold {renumbered} (value in the file: value in the "
            "store); if they are of another format, give it with --format",
        )
    out = values_XY.copy() if renumbered else values_XY
    for old, new in renumbered.items():
        out[values_XY == old] = new
    return out
