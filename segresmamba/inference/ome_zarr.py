"""Labels and probabilities as OME-Zarr groups of their own, on the RAS grid of the files.

<name>.zarr/zarr.json       OME metadata; the full affine and the labels under `segresmamba`
<name>.zarr/0               label (D, H, W), or probabilities (K, D, H, W) as float16
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from segresmamba.data.formats.source import read_json
from segresmamba.data.store import layout, ome
from segresmamba.data.volumes.geometry import Affine, spacing_mm
from segresmamba.errors import DataError
from segresmamba.storage.atomic import complete_folder, remove, temporary_path

_BAND = 16
"""Planes of probabilities that are kept in memory; one file holds them."""
_CHUNK = 64


def write_ome_zarr(
    path: Path, label_DHW: npt.NDArray[Any], affine: Affine, *, labels: dict[str, int]
) -> None:
    """Write a label as a group of its own, whole or not at all; an existing one is replaced.

    Raises:
        OSError: If it cannot be written.
        DataError: If there is a folder of that name with other content.
    """
    chunk = layout.CHUNK_DHW
    with _new_group(path) as group:
        group.attrs["ome"] = ome.label_attributes(affine, spacing_mm(affine), labels, None)
        group.attrs["segresmamba"] = {"affine": affine.tolist(), "labels": labels}
        array = group.create_array(
            "0",
            shape=label_DHW.shape,
            dtype=label_DHW.dtype,
            chunks=chunk,
            shards=_multiple(label_DHW.shape, chunk),
            compressors=layout.compressors(layout.CODEC),
            dimension_names=ome.LABEL_AXES,
        )
        array[...] = label_DHW


class ProbabilityWriter:
    """Writes probabilities plane by plane; see `writing_probabilities`."""

    def __init__(self, group: Any, shape_KDHW: Sequence[int], *, has_background: bool) -> None:
        channels, self._depth, *plane = shape_KDHW
        shard = _multiple((channels, _BAND, *plane), (1, _BAND, _CHUNK, _CHUNK))
        self._array = group.create_array(
            "0",
            shape=tuple(shape_KDHW),
            dtype="float16",
            chunks=(1, _BAND, _CHUNK, _CHUNK),
            shards=shard,
            compressors=layout.compressors(layout.CODEC),
            dimension_names=ome.IMAGE_AXES,
        )
        self._band_KDHW = np.zeros((channels, _BAND, *plane), np.float16)
        self._has_background = has_background
        self._first = 0
        self._clear()

    def __call__(self, depth: int, rows: slice, columns: slice, probabilities_KHW: Tensor) -> None:
        """Take a part of a plane; what is not given is background."""
        self._write_up_to(depth - _BAND)
        values = probabilities_KHW.half().cpu().numpy()
        self._band_KDHW[:, depth - self._first, rows, columns] = values

    def finish(self) -> None:
        """Write what is left."""
        self._write_up_to(self._depth - 1)

    def _write_up_to(self, depth: int) -> None:
        while self._first <= depth:
            end = min(self._first + _BAND, self._depth)
            self._array[:, self._first : end] = self._band_KDHW[:, : end - self._first]
            self._first += _BAND
            self._clear()

    def _clear(self) -> None:
        self._band_KDHW.fill(0)
        if self._has_background:
            self._band_KDHW[0] = 1


@contextmanager
def writing_probabilities(
    path: Path,
    shape_DHW: Sequence[int],
    affine: Affine,
    *,
    channels: Sequence[str],
    has_background: bool,
) -> Iterator[ProbabilityWriter]:
    """Give a block a writer; the group appears, whole, when the block ends without an error.

    Args:
        path: The group; an existing one is replaced.
        shape_DHW: Shape of the files' RAS grid.
        affine: Its affine, in (x, y, z) order.
        channels: What each channel is the probability of.
        has_background: Whether the first channel is background.

    Raises:
        OSError: If it cannot be written.
        DataError: If there is a folder of that name with other content.
    """
    with _new_group(path) as group:
        name = path.name.removesuffix(".zarr")
        group.attrs["ome"] = ome.image_attributes(name, affine, spacing_mm(affine))
        group.attrs["segresmamba"] = {"affine": affine.tolist(), "channels": list(channels)}
        shape_KDHW = (len(channels), *shape_DHW)
        writer = ProbabilityWriter(group, shape_KDHW, has_background=has_background)
        yield writer
        writer.finish()


def require_replaceable(path: Path) -> None:
    """Refuse to replace a folder that this module has not written, such as a store.

    Raises:
        DataError: Names the folder.
    """
    about = read_json(path / "zarr.json").get("attributes", {}).get("segresmamba", {})
    if "affine" in about and {one.name for one in path.iterdir()} == {"zarr.json", "0"}:
        return
    raise DataError(
        "there is a folder of that name already, which is no label map",
        where=path,
        got="a folder with other content",
        remedy="give another name, or move the folder: it would be deleted",
    )


@contextmanager
def _new_group(path: Path) -> Iterator[Any]:
    import zarr

    if path.exists():
        require_replaceable(path)
    temporary = temporary_path(path)
    new, former = temporary / "new", temporary / "former"
    remove(temporary)
    try:
        temporary.mkdir()
        yield zarr.create_group(new)
        if path.exists():
            # A folder cannot be renamed over one that has content. Deleting that one in its place
            # would, in a process that is killed, leave half of it, which nothing may replace.
            path.rename(former)
        complete_folder(new, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _multiple(shape: Sequence[int], chunk: Sequence[int]) -> tuple[int, ...]:
    """The smallest shape of whole chunks that holds everything."""
    return tuple(-(-size // step) * step for size, step in zip(shape, chunk, strict=True))
