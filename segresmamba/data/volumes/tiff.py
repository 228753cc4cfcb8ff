"""TIFF stacks of nnU-Net.

TIFF has no field for the size of voxels. So a JSON file lies beside a stack: {"spacing": [z, y, x]}
in mm. That of an image is named without the number of the channel: case.json for case_0000.tif.
"""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError

from segresmamba.data.records import Spacing
from segresmamba.data.untrusted import require_voxels
from segresmamba.data.volumes.geometry import LPS_TO_RAS
from segresmamba.data.volumes.opened_file import OpenedFile, value_errors
from segresmamba.errors import DataError
from segresmamba.storage.json_text import json_bytes

if TYPE_CHECKING:
    from tifffile import TiffPageSeries

logger = logging.getLogger(__name__)

TIFF_SUFFIXES = {".tif", ".tiff"}
_BIG_TIFF = 43


class _SpacingJson(BaseModel):
    """nnU-Net allows any other keys."""

    spacing: Spacing


def spacing_file(stack: Path) -> Path | None:
    """The file that says how large the voxels of a stack are, if there is one."""
    if stack.suffix.lower() not in TIFF_SUFFIXES:
        return None
    names = (stack.stem, re.sub(r"_\d{4}$", "", stack.stem))
    return next(
        (path for name in names if (path := stack.with_name(f"{name}.json")).exists()), None
    )


def open_tiff(path: Path) -> OpenedFile:
    """Read the header of a stack. ITK's reader would write beyond its memory on damaged files.

    Raises:
        DataError: If the stack is in colour, or compressed in a way that cannot be read here.
        EOFError, ValueError: If the file is damaged.
    """
    from tifffile import TiffFile, imread

    with value_errors():
        _require_end_of_pages(path)
    with value_errors(), TiffFile(path) as file:
        (series, *_) = file.series
        shape, axes, dtype = series.shape, series.axes, series.dtype
        compression = file.pages[0].compression
        if dtype is not None and compression != 1:
            _require_small_pieces(series)
    if dtype is None or set(axes) & set("SC"):
        raise DataError(
            "a TIFF stack must have one number for each voxel",
            where=path,
            got=f"axes {axes}",
            remedy="write a file for each colour or channel",
        )
    require_voxels(path.stat().st_size, shape, dtype.itemsize, packed=compression != 1)

    def planes() -> Iterator[npt.NDArray[Any]]:
        try:
            with value_errors():
                data_DHW = imread(path)
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            raise DataError(
                "a TIFF stack is compressed in a way that cannot be read",
                where=path,
                got=str(error),
                remedy="pip install imagecodecs, or write it with deflate or uncompressed",
            ) from error
        if data_DHW.shape != shape:
            raise ValueError(f"its header says that its shape is {shape}, not {data_DHW.shape}")
        return iter(data_DHW.transpose(0, 2, 1))

    affine = np.eye(4)
    if len(shape) == 3:
        affine = LPS_TO_RAS @ np.diag([*_spacing_mm(path)[::-1], 1.0])
    return OpenedFile(affine, shape[::-1], dtype, planes)


def _require_small_pieces(series: TiffPageSeries) -> None:
    """Refuse a piece that is larger than its voxels: tifffile inflates it whole, and then cuts."""
    voxel_bytes = prod(series.keyframe.chunks) * series.dtype.itemsize
    for page in series.pages:
        if page is not None and (size := max(page.databytecounts)) > 2 * voxel_bytes + 1024:
            raise ValueError(f"{size} compressed bytes for {voxel_bytes} bytes of voxels")


def _require_end_of_pages(path: Path) -> None:
    """Refuse a list of pages that leads back to itself, which tifffile follows for minutes."""
    with path.open("rb") as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = struct.unpack_from(f"{order}H", head, 2)[0] == _BIG_TIFF
        count_kind, entry_bytes, offset_kind = ("Q", 20, "Q") if big else ("H", 12, "I")
        (at,) = struct.unpack_from(order + offset_kind, head, 8 if big else 4)
        seen: set[int] = set()
        while at:
            if at in seen:
                raise ValueError("its list of pages leads back to itself")
            seen.add(at)
            file.seek(at)
            size = struct.calcsize(f"<{count_kind}")
            (entries,) = struct.unpack(order + count_kind, file.read(size))
            file.seek(at + size + entries * entry_bytes)
            size = struct.calcsize(f"<{offset_kind}")
            (at,) = struct.unpack(order + offset_kind, file.read(size))


def _spacing_mm(stack: Path) -> Spacing:
    """Voxel size along (D, H, W); 1 mm, with a warning, where nothing says it.

    Raises:
        DataError: If the file beside the stack does not hold three sizes.
    """
    path = spacing_file(stack)
    if path is None:
        logger.warning(
            "%s has no %s.json beside it: its voxels are taken to be 1 x 1 x 1 mm, as nnU-Net does",
            stack,
            stack.stem,
        )
        return 1.0, 1.0, 1.0
    try:
        return _SpacingJson.model_validate_json(json_bytes(path)).spacing
    except ValidationError as error:
        raise DataError(
            "the file beside a TIFF stack does not say how large its voxels are",
            where=path,
            got=error.errors()[0]["msg"],
            remedy='write {"spacing": [z, y, x]} there, in mm, slices first',
        ) from error
