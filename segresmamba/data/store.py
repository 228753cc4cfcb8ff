"""Read a store: `open_dataset` -> `Dataset` -> `Case`, each as lazy as it can be."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import zarr

from segresmamba.data import layout
from segresmamba.data.manifest import CaseRecord, Manifest, read_manifest
from segresmamba.data.policy import Preprocessing
from segresmamba.errors import DataError

if TYPE_CHECKING:
    from segresmamba.data.geometry import Affine, Original

_OPEN_CASES = 512  # about 20 KiB each


class Case:
    """One case of a store. Nothing is read before an attribute asks for it."""

    def __init__(
        self,
        path: Path,
        record: CaseRecord,
        preprocessing: Preprocessing,
        threads: int | None = None,
    ) -> None:
        self.path = path
        self.case_id = path.name
        self.record = record
        self._preprocessing = preprocessing
        self._threads = threads

    @cached_property
    def image(self) -> zarr.Array[Any]:
        """(C, D, H, W) as stored; slicing it reads the chunks that the slice touches."""
        return self._open(layout.IMAGE)

    @cached_property
    def label(self) -> zarr.Array[Any]:
        """(D, H, W) of uint8 or int16."""
        # Zarr writes no file for an array of zeros alone.
        return self._open(layout.LABEL, may_be_empty=not self.class_values)

    @cached_property
    def _positions(self) -> zarr.Array[Any]:
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
        return self._read(self._positions, slice(first, first + count)).astype(np.int64)

    def class_position(self, value: int, index: int) -> tuple[int, int, int]:
        """One row of `class_positions`, of which only the chunk that holds it is read."""
        first, count = self._positions_span(value)
        assert 0 <= index < count, (value, index, count)
        row = first + index
        depth, height, width = self._read(self._positions, slice(row, row + 1))[0].tolist()
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
        box = tuple(
            slice(start, start + size) for start, size in zip(start_DHW, size_DHW, strict=True)
        )
        return self._read(self.image, (slice(None), *box)), self._read(self.label, box)

    def read(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Read the whole image (C, D, H, W) and label (D, H, W), as `crop`."""
        return self.crop((0, 0, 0), self.shape_DHW)

    @property
    def original(self) -> Original:
        """The grid of the files that the case was made from."""
        from segresmamba.data.geometry import Original

        return Original.from_text(self.record.original_header)

    def restore_label(self, label_DHW: npt.NDArray[Any]) -> Any:
        """A nibabel image of a label in the original affine, orientation, shape and dtype."""
        refit = self.record.refit
        return self.original.restore(refit.undo(label_DHW) if refit else label_DHW)

    def reference(self) -> Any:
        """The label as its file has it, in the original geometry; a nibabel image.

        Raises:
            DataError: As `crop`.
        """
        whole = (slice(None),) * 3
        if self.record.refit is None:
            return self.original.restore(self._read(self.label, whole))
        filed = self._open(layout.REFERENCE, may_be_empty=True)
        return self.original.restore(self._read(filed, whole))

    def _positions_span(self, value: int) -> tuple[int, int]:
        counts = self.record.class_positions
        if value not in counts:
            return 0, 0
        values = list(counts)
        return sum(counts[before] for before in values[: values.index(value)]), counts[value]

    def _open(self, name: str, *, may_be_empty: bool = False) -> zarr.Array[Any]:
        try:
            with layout.fast_pipeline(self._threads):
                array = zarr.open_array(self.path / name, mode="r")
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(self.path / name, error) from error
        shard = layout.shard_file(self.path / name, array.ndim)
        if not (may_be_empty or shard.exists()):
            # Zarr would take it for an array of zeros.
            raise _damaged(shard, FileNotFoundError("the shard file is missing"))
        return array

    def _read(self, array: zarr.Array[Any], box: Any) -> npt.NDArray[Any]:
        try:
            return np.asarray(array[box])
        except (OSError, RuntimeError, ValueError) as error:
            raise _damaged(self.path / array.path, error) from error


class Dataset:
    """A store, of which only the manifest has been read.

    It may be sent to other processes: each opens its own arrays.
    """

    def __init__(self, path: Path, manifest: Manifest, threads: int | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self._threads = threads
        self._case = lru_cache(_OPEN_CASES)(self._new_case)

    def __reduce__(self) -> tuple[Any, ...]:
        return Dataset, (self.path, self.manifest, self._threads)

    def __getitem__(self, case_id: str) -> Case:
        """The case of that id; nothing of it is read.

        Raises:
            DataError: If there is none.
        """
        return self._case(case_id)

    def __len__(self) -> int:
        return len(self.manifest.cases)

    def with_threads(self, threads: int) -> Dataset:
        """The same dataset, decoding chunks with that many threads."""
        return Dataset(self.path, self.manifest, threads)

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
                where=self.path,
                got=case_id,
                remedy=f"it has {len(self)}: {', '.join(self.case_ids[:20])}"
                + (", ..." if len(self) > 20 else ""),
            )
        return Case(
            self.path / case_id,
            self.manifest.cases[case_id],
            self.manifest.preprocessing,
            self._threads,
        )


def open_dataset(path_or_url: str | Path, *, threads: int | None = None) -> Dataset:
    """Open what `convert` wrote, by one read of its manifest.

    Args:
        path_or_url: The store's folder.
        threads: That decode chunks; unset takes all cores.

    Raises:
        DataError: If there is no manifest, or it is damaged or of a newer version.
    """
    if "://" in str(path_or_url):
        raise DataError(
            "a dataset must lie in a folder",
            where="data.store",
            got=path_or_url,
            remedy="copy the store to a local or mounted folder and give its path",
        )
    path = Path(path_or_url)
    return Dataset(path, read_manifest(path), threads)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        "a stored case is damaged",
        where=path,
        got=f"{type(error).__name__}: {error}".splitlines()[0],
        remedy="run `segresmamba verify` on the store; remove the case's folder and run "
        "`segresmamba convert` again, which restores what is missing",
    )
