"""Write one case's group."""

from __future__ import annotations

import os
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

    A case that is there already is replaced.

    Args:
        path: The case's folder.
        record: What is said about it.
        storage: Codec and chunk.
        labels: Names and values of the dataset.
        image_CDHW: As stored.
        label_DHW: On the same grid.
        positions: Voxels of each class.
        reference_DHW: The label on the files' grid, where that is another.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        group = zarr.create_group(
            temporary,
            attributes={
                "ome": ome.image_attributes(path.name, record),
                layout.RECORD: record.model_dump(mode="json"),
            },
        )
        outer = {"ome": ome.labels_attributes(layout.LABEL_NAME)}
        inner = {"ome": ome.label_attributes(layout.LABEL_NAME, record, labels)}
        group.create_group("labels", attributes=outer)
        group.create_group(f"labels/{layout.LABEL_NAME}", attributes=inner)
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
            shutil.rmtree(path)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
