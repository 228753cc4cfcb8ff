"""Read a store: `open_dataset` -> `Dataset` -> `Case`, each as lazy as it can be."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from segresmamba.data.preprocessing import Preprocessing
from segresmamba.data.store import layout
from segresmamba.data.store.files import Files
from segresmamba.data.store.locations import files_of
from segresmamba.data.store.manifest import CaseRecord, Manifest, read_manifest
from segresmamba.data.store.shard import ShardedArray
from segresmamba.errors import DataError

if TYPE_CHECKING:
    import zarr

    from segresmamba.data.volumes.geometry import Affine, OriginalGrid

_T = TypeVar("_T")

_OPEN_CASES = 128  # three open files each


class Case:
    """One case of a store. Nothing is read before an attribute asks for it.

    Args:
        files: Of the store.
        case_id: Its folder there.
        record: From the store's manifest.
        preprocessing: Likewise.
    """

    def __init__(
        self, files: Files, case_id: str, record: CaseRecord, preprocessing: Preprocessing
    ) -> None:
        self.case_id = case_id
        self.record = record
        self._files = files
        self._preprocessing = preprocessing

    @property
    def image(self) -> zarr.Array[Any]:
        """(C, D, H, W) as stored, as Zarr opens it."""
        return self._zarr_array(layout.IMAGE)

    @property
    def label(self) -> zarr.Array[Any]:
        """(D, H, W) of uint8 or int16, as Zarr opens it."""
        return self._zarr_array(layout.LABEL)

    @cached_property
    def _image(self) -> ShardedArray:
        return self._open(layout.IMAGE)

    @cached_property
    def _label(self) -> ShardedArray:
        return self._open(layout.LABEL, may_be_empty=not self.class_values)

    @cached_property
    def _positions(self) -> ShardedArray:
        return self._open(layout.POSITIONS)

    @property
    def shape_DHW(self) -> tuple[int, int, int]:
        """Size of the volume in voxels."""
        return self.record.shape_DHW

    @property
    def affine(self) -> Affine:
        """4x4, voxel (x, y, z) of the stored grid to RAS mm."""
        return np.array(self.record.affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along (D, H, W)."""
        return self.record.spacing_mm

    @cached_property
    def normalisation_C4(self) -> npt.NDArray[np.float32]:
        """Low, high, mean and deviation of each channel, as `normalise` takes them."""
        return self._preprocessing.for_case(self.record.statistics, self.record.scale)

    @property
    def class_values(self) -> tuple[int, ...]:
        """Foreground classes that occur in this case, ascending."""
        return tuple(sorted(self.record.class_voxels))

    def class_positions(self, value: int) -> npt.NDArray[np.int64]:
        """Stored voxels of a class: (n, 3) indices along (D, H, W), n = 0 where it is absent."""
        first, count = self._positions_span(value)
        if not count:
            return np.empty((0, 3), np.int64)
        return self._read_positions(first, count)

    def class_position(self, value: int, index: int) -> tuple[int, int, int]:
        """One row of `class_positions`, of which only the chunk that holds it is read."""
        first, count = self._positions_span(value)
        assert 0 <= index < count, (value, index, count)
        depth, height, width = self._read_positions(first + index, 1)[0].tolist()
        return depth, height, width

    def crop(
        self, start_DHW: tuple[int, int, int], size_DHW: tuple[int, int, int]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Read a box that lies inside the volume.

        Returns:
            Image (C, D, H, W) and label (D, H, W) with the stored dtypes.

        Raises:
            DataError: If a chunk it touches is damaged or the file is gone.
        """
        channels = self.record.shape_CDHW[0]
        image = np.zeros((channels, *size_DHW), self.record.image_dtype)
        label = np.zeros(size_DHW, self.record.label_dtype)
        self.crop_into(start_DHW, image, label)
        return image, label

    def crop_into(
        self,
        start_DHW: tuple[int, int, int],
        image_CDHW: npt.NDArray[Any],
        label_DHW: npt.NDArray[Any],
    ) -> None:
        """As `crop`, into arrays of any dtype that are filled with zeros."""
        self._read(layout.IMAGE, lambda: self._image.read((0, *start_DHW), image_CDHW))
        self._read(layout.LABEL, lambda: self._label.read(start_DHW, label_DHW))

    def read(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Read the whole image (C, D, H, W) and label (D, H, W), as `crop`."""
        return self.crop((0, 0, 0), self.shape_DHW)

    @property
    def original(self) -> OriginalGrid:
        """The grid of the files that the case was made from."""
        from segresmamba.data.volumes.geometry import OriginalGrid

        return OriginalGrid.from_text(self.record.original_header)

    def restore_label(self, label_DHW: npt.NDArray[Any]) -> Any:
        """A nibabel image of a label in the original affine, orientation, shape and dtype."""
        refit = self.record.refit
        return self.original.restore(refit.undo(label_DHW) if refit else label_DHW)

    def reference(self) -> Any:
        """The label as its file has it, in the original geometry; a nibabel image.

        Raises:
            DataError: As `crop`.
        """

        def whole() -> npt.NDArray[Any]:
            refit = self.record.refit
            array = self._open(layout.REFERENCE, may_be_empty=True) if refit else self._label
            label_DHW = np.zeros(array.shape, array.dtype)
            array.read((0, 0, 0), label_DHW)
            return label_DHW

        return self.original.restore(self._read(layout.REFERENCE, whole))

    def _positions_span(self, value: int) -> tuple[int, int]:
        counts = self.record.class_positions
        if value not in counts:
            return 0, 0
        values = list(counts)
        return sum(counts[before] for before in values[: values.index(value)]), counts[value]

    def _read_positions(self, first: int, count: int) -> npt.NDArray[np.int64]:
        rows = np.zeros((count, 3), np.int64)
        self._read(layout.POSITIONS, lambda: self._positions.read((first, 0), rows))
        return rows

    def _zarr_array(self, name: str) -> zarr.Array[Any]:
        return self._read(name, lambda: self._files.zarr_array(f"{self.case_id}/{name}"))

    def _open(self, name: str, *, may_be_empty: bool = False) -> ShardedArray:
        return ShardedArray(self._files, f"{self.case_id}/{name}", may_be_empty=may_be_empty)

    def _read(self, name: str, read: Callable[[], _T]) -> _T:
        try:
            return read()
        except DataError:  # of the server
            raise
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise _damaged(self._files.join(f"{self.case_id}/{name}"), error) from error


class Dataset:
    """A store, of which only the manifest has been read.

    It may be sent to other processes: each opens its own arrays.
    """

    def __init__(self, files: Files, manifest: Manifest) -> None:
        self.files = files
        self.manifest = manifest
        self._case = lru_cache(_OPEN_CASES)(self._new_case)

    def __reduce__(self) -> tuple[Any, ...]:
        return Dataset, (self.files, self.manifest)

    def __getitem__(self, case_id: str) -> Case:
        """The case of that id; nothing of it is read.

        Raises:
            DataError: If there is none.
        """
        return self._case(case_id)

    def __len__(self) -> int:
        return len(self.manifest.cases)

    @property
    def where(self) -> str:
        """Its folder, zip file or URL."""
        return self.files.where

    @property
    def name(self) -> str:
        """Of the source dataset."""
        return self.manifest.name

    @property
    def channel_names(self) -> tuple[str, ...]:
        """In the order of the image's first axis."""
        return self.manifest.channel_names

    @property
    def labels(self) -> dict[str, int]:
        """Name to value, background 0 first."""
        return self.manifest.labels

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Sorted."""
        return tuple(self.manifest.cases)

    @property
    def splits(self) -> list[dict[str, list[str]]]:
        """Folds, each {"train": case ids, "val": case ids}."""
        return [
            {"train": list(split.train), "val": list(split.val)} for split in self.manifest.splits
        ]

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image is treated before a network sees it."""
        return self.manifest.preprocessing

    @property
    def codec(self) -> str:
        """How the arrays are compressed."""
        return self.manifest.storage.codec

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Shapes, spacings, intensities and class volumes over all cases."""
        return self.manifest.fingerprint

    @property
    def digest(self) -> str:
        """SHA-256 of the content: voxels, geometry, labels and splits."""
        return self.manifest.digest

    def _new_case(self, case_id: str) -> Case:
        if case_id not in self.manifest.cases:
            raise DataError(
                "the dataset has no such case",
                where=self.where,
                got=case_id,
                remedy=f"it has {len(self)}: {', '.join(self.case_ids[:20])}"
                + (", ..." if len(self) > 20 else ""),
            )
        record = self.manifest.cases[case_id]
        return Case(self.files, case_id, record, self.manifest.preprocessing)


def open_dataset(path_or_url: str | Path) -> Dataset:
    """Open what `convert` wrote, by one read of its manifest.

    Args:
        path_or_url: The store's folder, a zip file of it, or a URL such as s3://bucket/store.

    Raises:
        DataError: If there is no manifest, or it is damaged or of a newer version; if a server
            cannot be reached, or refuses.
    """
    files = files_of(path_or_url)
    return Dataset(files, read_manifest(files))


def _damaged(where: str, error: Exception) -> DataError:
    return DataError(
        "a stored case is damaged",
        where=where,
        got=f"{type(error).__name__}: {error}".splitlines()[0],
        remedy="run `segresmamba verify --fix` on the store, which converts damaged cases anew",
    )
