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

from segresmamba.data import layout, ome
from segresmamba.data.manifest import CaseRecord


def write_case(
    path: Path,
    record: CaseRecord,
    *,
    labels: dict[str, int],
    image_CDHW: npt.NDArray[Any],
    label_DHW: npt.NDArray[Any],
    positions: npt.NDArray[np.uint16],
) -> None:
    """Write a case's group; it appears under its name complete or not at all.

    A case that is there already is replaced.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with layout.fast_pipeline(threads=1):
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
            _write_array(group, layout.IMAGE, image_CDHW, (1, *layout.CHUNK_DHW), ome.IMAGE_AXES)
            _write_array(group, layout.LABEL, label_DHW, layout.CHUNK_DHW, ome.LABEL_AXES)
            if len(positions):
                _write_array(
                    group, layout.POSITIONS, positions, (layout.POSITIONS_CHUNK, 3), ("n", "axis")
                )
        if path.exists():
            shutil.rmtree(path)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_array(
    group: zarr.Group,
    name: str,
    data: npt.NDArray[Any],
    chunk: tuple[int, ...],
    axes: tuple[str, ...],
) -> None:
    shard = tuple(-(-size // step) * step for size, step in zip(data.shape, chunk, strict=True))
    array = group.create_array(
        name,
        shape=data.shape,
        dtype=data.dtype,
        chunks=chunk,
        shards=shard,
        compressors=layout.compressors(),
        dimension_names=axes,
    )
    array[...] = data
