"""Read a store: `open_dataset` -> `Dataset` -> `Case`. Each reads as late as it can.

Many users need only the manifest: folds, labels, shapes. Voxels are mostly read by other processes
than the one that opened the dataset, and each process opens its own files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from errno import EISDIR, ENOENT, ENOTDIR
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from segresmamba.data.preprocessing import Preprocessing
from segresmamba.data.store import layout
from segresmamba.data.store.files import PATIENCE_S, Files
from segresmamba.data.store.locations import files_at
from segresmamba.data.store.manifest import CaseRecord, Manifest, read_manifest
from segresmamba.data.store.shard import ShardedArray
from segresmamba.errors import DamagedCaseError, DataError, StoreAwayError, is_passing

if TYPE_CHECKING:
    import zarr

    from segresmamba.data.volumes.geometry import Affine, OriginalGrid

_OPEN_CASES = 128  # each keeps up to three files open


class Case:
    """One case of a store. Nothing is read before a method asks for it.

    Args:
        files: The files of the store.
        case_id: The case's folder in the store.
        record: The case's record in the manifest.
        preprocessing: What the manifest says is done to an image.

    Attributes:
        shape_DHW: Size of the volume in voxels.
        spacing_mm: Voxel size along (D, H, W).
        class_values: Foreground classes that occur in this case, ascending.
    """

    def __init__(
        self, files: Files, case_id: str, record: CaseRecord, preprocessing: Preprocessing
    ) -> None:
        self.case_id = case_id
        self.record = record
        self.shape_DHW = record.shape_DHW
        self.spacing_mm = record.spacing_mm
        self.class_values = tuple(sorted(record.class_voxels))
        self._files = files
        self._preprocessing = preprocessing
        self._arrays: dict[str, ShardedArray] = {}

    def open_image(self) -> zarr.Array[Any]:
        """Open the stored image (C, D, H, W) with Zarr."""
        return self._open_with_zarr(layout.IMAGE)

    def open_label(self) -> zarr.Array[Any]:
        """Open the stored label (D, H, W), uint8 or int16, with Zarr."""
        return self._open_with_zarr(layout.LABEL)

    @property
    def affine(self) -> Affine:
        """4x4, voxel (x, y, z) of the stored grid to RAS mm."""
        return np.array(self.record.affine)

    @cached_property
    def normalisation_C4(self) -> npt.NDArray[np.float32]:
        """Low, high, mean and deviation of each channel, as `normalise` takes them."""
        with self._damage_reported(""):
            return self._preprocessing.for_case(self.record.statistics, self.record.scale)

    def class_positions(self, value: int) -> npt.NDArray[np.int64]:
        """Read the stored voxels of a class.

        Returns:
            Indices (n, 3) along (D, H, W); n is 0 if the class does not occur.

        Raises:
            DataError: If a chunk is damaged or the file is gone.
        """
        first, count = self._position_rows(value)
        return self._read_positions(first, count)

    def class_position(self, value: int, index: int) -> tuple[int, int, int]:
        """Read one row of `class_positions`. Only the chunk that holds it is read."""
        first, count = self._position_rows(value)
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
            DamagedCaseError: If a chunk that the box touches is damaged or the file is gone.
            DataError: If the file system or the server of the store is in trouble.
        """
        # Filled with zeros: chunks of zeros are not stored, and so not written.
        channels = self.record.shape_CDHW[0]
        with self._damage_reported(""):
            # A damaged record may name any number, and memory is taken for it.
            if channels != (count := len(self.record.statistics)):
                raise ValueError(f"its record has statistics of {count} channels of {channels}")
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
        """Read a box like `crop`, into arrays of any dtype that are filled with zeros."""
        self._read_box(layout.IMAGE, (0, *start_DHW), image_CDHW)
        self._read_box(layout.LABEL, start_DHW, label_DHW)

    def read(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Read the whole image (C, D, H, W) and label (D, H, W) like `crop`."""
        return self.crop((0, 0, 0), self.shape_DHW)

    @property
    def original(self) -> OriginalGrid:
        """Grid of the files that the case was made from."""
        from segresmamba.data.volumes.geometry import OriginalGrid

        with self._damage_reported(""):
            return OriginalGrid.from_text(self.record.original_header)

    def restore_label(self, label_DHW: npt.NDArray[Any]) -> Any:
        """A nibabel image of a label in the original affine, orientation, shape and dtype."""
        transform = self.record.grid_transform
        return self.original.restore(transform.undo(label_DHW) if transform else label_DHW)

    def reference(self) -> Any:
        """Read the label as its file has it: a nibabel image in the original geometry.

        Raises:
            DataError: If a chunk is damaged or the file is gone.
        """
        # Only a case whose grid was changed keeps a second label. Else the stored one is exact.
        transform = self.record.grid_transform
        name = layout.REFERENCE if transform else layout.LABEL
        shape_DHW = transform.full_DHW if transform else self.shape_DHW
        label_DHW = np.zeros(shape_DHW, self.record.label_dtype)
        self._read_box(name, (0, 0, 0), label_DHW)
        return self.original.restore(label_DHW)

    def _position_rows(self, value: int) -> tuple[int, int]:
        """First row of a class in the array of positions, and the number of its rows."""
        counts = self.record.class_positions
        if value not in counts:
            return 0, 0
        values = list(counts)
        return sum(counts[before] for before in values[: values.index(value)]), counts[value]

    def _read_positions(self, first: int, count: int) -> npt.NDArray[np.int64]:
        rows = np.zeros((count, 3), np.int64)
        if count:  # a case without foreground has no array of positions
            self._read_box(layout.POSITIONS, (first, 0), rows)
        return rows

    def _read_box(self, name: str, start: tuple[int, ...], out: npt.NDArray[Any]) -> None:
        """Read a box of an array into `out`. The array's file and index are kept open."""
        with self._damage_reported(name):
            array = self._arrays.get(name)
            if array is None:
                labels = name in (layout.LABEL, layout.REFERENCE)
                array = self._arrays[name] = ShardedArray(
                    self._files,
                    f"{self.case_id}/{name}",
                    may_be_empty=labels and not self.class_values,
                )
            array.read(start, out)

    def _open_with_zarr(self, name: str) -> zarr.Array[Any]:
        with self._damage_reported(name):
            array: zarr.Array[Any] = self._files.zarr_array(f"{self.case_id}/{name}")
            return array

    @contextmanager
    def _damage_reported(self, name: str) -> Iterator[None]:
        try:
            yield
        except DataError:  # a server that does not answer is not a damaged case
            raise
        except (OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
            if is_passing(error):
                raise StoreAwayError(
                    "a stored case cannot be read now",
                    where=self._files.join(f"{self.case_id}/{name}"),
                    got=f"{type(error).__name__}: {error}".splitlines()[0],
                    remedy="see that the file system answers, then the same command",
                ) from error
            # Other errors of the system say nothing about the file's bytes.
            absent = {None, ENOENT, ENOTDIR, EISDIR}
            is_damage = not isinstance(error, OSError) or error.errno in absent
            raise (DamagedCaseError if is_damage else DataError)(
                "a stored case is damaged",
                where=self._files.join(f"{self.case_id}/{name}"),
                got=f"{type(error).__name__}: {error}".splitlines()[0],
                remedy="run `segresmamba verify --fix` on the store, which converts damaged cases "
                "anew",
            ) from error


class Dataset:
    """A store of which only the manifest has been read.

    It can be sent to other processes. Each of them opens its own files.

    Attributes:
        where: Folder, zip file or URL of the store.
        name: Name of the source dataset.
        channel_names: Names in the order of the image's first axis.
        labels: Label names and values, background 0 first.
        case_ids: Ids of all cases, sorted.
        splits: Folds, each {"train": case ids, "val": case ids}.
        preprocessing: What is done to an image before a network sees it.
        codec: How the arrays are compressed.
        fingerprint: Summary statistics: shapes, spacings, intensities and class volumes.
        digest: SHA-256 of the content: voxels, geometry, labels, splits and normalisation.
    """

    def __init__(self, files: Files, manifest: Manifest) -> None:
        self.files = files
        self.manifest = manifest
        self.where = files.where
        self.name = manifest.name
        self.channel_names = manifest.channel_names
        self.labels = manifest.labels
        self.case_ids = tuple(manifest.cases)
        self.splits = [
            {"train": list(split.train), "val": list(split.val)} for split in manifest.splits
        ]
        sizes_mm = np.array([record.spacing_mm for record in manifest.cases.values()])
        trained_mm = sizes_mm.min(axis=0).tolist(), sizes_mm.max(axis=0).tolist()
        self.preprocessing = manifest.preprocessing.model_copy(
            update={"trained_mm": tuple(map(tuple, trained_mm))}
        )
        self.codec = manifest.storage.codec
        self.fingerprint = manifest.fingerprint
        self.digest = manifest.digest
        # One cache for each dataset, so it is made here and not by a decorator.
        self._case = lru_cache(_OPEN_CASES)(self._new_case)

    def __reduce__(self) -> tuple[Any, ...]:
        return Dataset, (self.files, self.manifest)

    def smaller_than(self, patch: tuple[int, int, int], case_ids: Sequence[str]) -> list[str]:
        """Those of the cases that are smaller than a patch (D, H, W) along some axis."""
        shapes = {case_id: self.manifest.cases[case_id].shape_DHW for case_id in case_ids}
        return [case_id for case_id, shape in shapes.items() if any(np.less(shape, patch))]

    def __getitem__(self, case_id: str) -> Case:
        """The case with that id. Nothing of it is read.

        Raises:
            DataError: If there is no such case.
        """
        return self._case(case_id)

    def __len__(self) -> int:
        return len(self.manifest.cases)

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
        return Case(self.files, case_id, record, self.preprocessing)


def open_dataset(path_or_url: str | Path, *, patience_s: float = PATIENCE_S) -> Dataset:
    """Open a store that `convert` wrote. One read of its manifest is all that is read.

    Args:
        path_or_url: Folder of the store, a zip file of it, or a URL such as s3://bucket/store.
        patience_s: How long a request to a URL is repeated, see `data.patience_s`.

    Raises:
        DataError: If there is no manifest, it is damaged or of a newer version, or a server cannot
            be reached or refuses access.
    """
    files = files_at(path_or_url, patience_s=patience_s)
    return Dataset(files, read_manifest(files))
