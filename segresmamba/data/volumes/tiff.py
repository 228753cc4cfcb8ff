"""The voxel size of TIFF stacks, which have no field of their own for it.

As in nnU-Net a JSON file lies beside the stack: {"spacing": [z, y, x]} in mm. That of an image is
named without the number of the channel: case.json for case_0000.tif.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from pydantic import BaseModel, ValidationError

from segresmamba.data.records import Spacing
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)

TIFF_SUFFIXES = {".tif", ".tiff"}


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


def spacing_mm(stack: Path) -> Spacing:
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
        return _SpacingJson.model_validate_json(path.read_bytes()).spacing
    except ValidationError as error:
        raise DataError(
            "the file beside a TIFF stack does not say how large its voxels are",
            where=path,
            got=error.errors()[0]["msg"],
            remedy='write {"spacing": [z, y, x]} there, in mm, slices first',
        ) from error
