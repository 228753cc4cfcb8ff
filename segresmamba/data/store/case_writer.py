"""Write one case's group.

The group is written under a temporary name and renamed, so that a killed conversion never leaves
half a case under a case's name.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from segresmamba.data.store import layout, ome
from segresmamba.data.store.manifest import CaseRecord, Storage
from segresmamba.data.store.shard_writer import write_array
from segresmamba.storage import atomic


def write_case(
    path: Path,
    record: CaseRecord,
    storage: Storage,
    *,
    labels: dict[str, int],
    image_CDHW: npt.NDArray[Any],
    label_DHW: npt.NDArray[Any],
    positions: npt.NDArray[np.uint16],
    reference_DHW: npt.NDArray[Any] | None = None,
) -> None:
    """Write a case's group; it appears under its name complete or not at all.

    An existing case is replaced.

    Args:
        path: The case's folder.
        record: Everything about the case but its voxels.
        storage: Codec and chunk.
        labels: Label names and values of the dataset.
        image_CDHW: The image with its stored dtype.
        label_DHW: The label on the image's grid.
        positions: Voxels of each class, (n, 3).
        reference_DHW: The label on the grid of its file, where that is another grid.

    Raises:
        OSError: If the group cannot be written.
    """
    # A unique name, so that two writers of one case never share a folder.
    temporary = path.with_name(f".part-{uuid.uuid4().hex}-{path.name}")
    try:
        group = zarr.create_group(
            temporary,
            attributes={
                "ome": ome.image_attributes(path.name, record.affine, record.spacing_mm),
                layout.RECORD: record.model_dump(mode="json"),
            },
        )
        outer = {"version": ome.VERSION, "labels": [layout.LABEL_NAME]}
        inner = ome.label_attributes(record.affine, record.spacing_mm, labels, "../../")
        group.create_group("labels", attributes={"ome": outer})
        group.create_group(f"labels/{layout.LABEL_NAME}", attributes={"ome": inner})
        chunk_DHW = storage.chunk_DHW
        arrays: list[tuple[str, npt.NDArray[Any], tuple[int, ...], tuple[str, ...]]] = [
            (layout.IMAGE, image_CDHW, (1, *chunk_DHW), ome.IMAGE_AXES),
            (layout.LABEL, label_DHW, chunk_DHW, ome.LABEL_AXES),
        ]
        if reference_DHW is not None:
            arrays.append((layout.REFERENCE, reference_DHW, chunk_DHW, ome.LABEL_AXES))
        if len(positions):
            arrays.append((layout.POSITIONS, positions, (layout.POSITIONS_CHUNK, 3), ("n", "axis")))
        for name, data, chunk, axes in arrays:
            write_array(group, temporary, name, data, chunk, axes, storage.codec)
        if path.exists():
            shutil.rmtree(path)  # a folder cannot be renamed over one that has content
        atomic.complete_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
