"""Label maps that `segresmamba predict --format zarr` wrote: OME-Zarr groups on a RAS grid.

<case>.zarr/zarr.json   the affine, under `segresmamba`
<case>.zarr/0           label values (D, H, W)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segresmamba.data.volumes.opened_file import OpenedFile, value_errors


def open_zarr(path: Path) -> OpenedFile:
    """Open a label map; its voxels are read a layer of chunks at a time.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it is no label map of this project, or is damaged.
    """
    import zarr  # most label maps are files

    if not path.is_dir():
        raise FileNotFoundError(path)
    with value_errors():
        group = zarr.open_group(path, mode="r")
        affine = np.array(group.attrs["segresmamba"]["affine"], np.float64)  # type: ignore[index, call-overload]
        label_DHW: Any = group["0"]
        if label_DHW.ndim != 3 or affine.shape != (4, 4):
            raise ValueError(f"an array of shape {label_DHW.shape}, an affine of {affine.shape}")

    def planes() -> Iterator[npt.NDArray[Any]]:
        for first in range(0, label_DHW.shape[0], label_DHW.chunks[0]):
            with value_errors():
                layer_DHW = label_DHW[first : first + label_DHW.chunks[0]]
            for plane_HW in layer_DHW:
                yield plane_HW.T

    return OpenedFile(affine, label_DHW.shape[::-1], label_DHW.dtype, planes)
