"""Readers of random crops: the project's, and those with which it is compared.

Each reader writes the same volumes in its own layout and returns a crop as a batch of one:
image (1, C, D, H, W) float32 and label (1, D, H, W), both torch tensors.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from streaming_volumes import Volume, write_raw
from torch import Tensor

from segresmamba.data import convert, open_dataset
from segresmamba.data.store import layout
from segresmamba.data.stream.batch import BatchLayout, BufferPool

Start = tuple[int, int, int]
Crop = tuple[Tensor, Tensor]
PATCH = (128, 128, 128)


class Reader:
    """Volumes in one layout.

    Args:
        folder: The reader's own folder.
        volumes: Written to the folder, unless it exists.
    """

    name = ""
    slow = False
    """Whether a crop takes seconds."""

    def __init__(self, folder: Path, volumes: list[Volume]) -> None:
        self.folder = folder
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            self.write(part, volumes)
            part.rename(folder)
        self.open()

    def write(self, folder: Path, volumes: list[Volume]) -> None:
        raise NotImplementedError

    def open(self) -> None:
        """Open what was written, before the first crop."""

    def read(self, case: int, start: Start) -> Crop:
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Size on disk."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)


class Ours(Reader):
    """What the loader does: decode straight into a buffer that is used again."""

    name = "segresmamba"

    def write(self, folder: Path, volumes: list[Volume]) -> None:
        raw = folder.with_name("raw")
        if not raw.exists():
            write_raw(raw, volumes)
        convert(raw, folder)

    def open(self) -> None:
        self.dataset = open_dataset(self.folder)
        self.buffers = BufferPool(shared=False)

    def read(self, case: int, start: Start) -> Crop:
        opened = self.dataset[f"case_{case}"]
        batch = BatchLayout(1, opened.record.shape_CDHW[0], PATCH, opened.record.label_dtype)
        buffer = self.buffers.take(batch.bytes)
        image, label = batch.split(self.buffers.content(buffer))
        opened.crop_into(start, image[0].numpy(), label[0].numpy())
        buffer[0] = 0  # as the trainer does when it has used the batch
        return image, label


class PlainZarr(Ours):
    """The same store, read by zarr-python."""

    name = "zarr-python"

    def open(self) -> None:
        super().open()
        with self.pipeline():
            self.cases = [
                (self.dataset[case].open_image(), self.dataset[case].open_label())
                for case in self.dataset.case_ids
            ]

    def pipeline(self) -> Any:
        return layout.checking_pipeline()

    def read(self, case: int, start: Start) -> Crop:
        image, label = self.cases[case]
        box = _box(start)
        crop = np.asarray(image[:, *box]).astype(np.float32, copy=False)
        return torch.from_numpy(crop)[None], torch.from_numpy(np.asarray(label[box]))[None]


class FusedZarr(PlainZarr):
    """The same store, read by the pipeline without coroutines that zarr-python has from 3.3 on."""

    name = "zarr-python, fused"

    def pipeline(self) -> Any:
        import zarr

        return zarr.config.set(
            {"codec_pipeline.path": "zarr.core.codec_pipeline.FusedCodecPipeline"}
        )


class RustZarr(PlainZarr):
    """The same store, read by zarr-python with the zarrs pipeline and one thread."""

    name = "zarr-python + zarrs"

    def pipeline(self) -> Any:
        import zarr

        return zarr.config.set(
            {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1}
        )


class NnUNet(Reader):
    """nnU-Net 2.8.1: nnunetv2/training/dataloading/{nnunet_dataset,data_loader}.py.

    The files have the blocks and chunks of its comp_blosc2_params for these shapes, LZ4HC 5 and the
    filter that its _select_filter chooses. They are read as in generate_train_batch: for every crop
    both files are opened memory-mapped with one thread, and the crop is copied to the batch.
    """

    name = "nnU-Net blosc2"
    blocks: tuple[int, ...] = (1, 32, 32, 32)
    chunks: tuple[int, ...] = (1, 96, 128, 128)

    def write(self, folder: Path, volumes: list[Volume]) -> None:
        import blosc2

        folder.mkdir()
        for number, (image, label) in enumerate(volumes):
            arrays = ((image.astype(np.float32), ""), (label.astype(np.int16)[None], "_seg"))
            for array, suffix in arrays:
                blosc2.asarray(
                    np.ascontiguousarray(array),
                    urlpath=str(folder / f"case_{number}{suffix}.b2nd"),
                    chunks=self.chunks,
                    blocks=self.blocks,
                    cparams=self._parameters(array),
                )
            places = {value: np.argwhere(label == value)[:10_000] for value in (1, 2)}
            (folder / f"case_{number}.pkl").write_bytes(pickle.dumps({"class_locations": places}))

    def _parameters(self, array: Any) -> dict[str, Any]:
        import blosc2

        slab = tuple(
            slice((size - min(size, chunk)) // 2, (size - min(size, chunk)) // 2 + chunk)
            for size, chunk in zip(array.shape, self.chunks, strict=True)
        )
        choices = [
            {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 1, "filters": [chosen]}
            for chosen in (blosc2.Filter.NOFILTER, blosc2.Filter.SHUFFLE)
        ]
        part = np.ascontiguousarray(array[slab])
        return min(
            choices,
            key=lambda chosen: (
                blosc2.asarray(
                    part, chunks=part.shape, blocks=self.blocks, cparams=chosen
                ).schunk.cbytes
            ),
        )

    def open(self) -> None:
        import blosc2

        blosc2.set_nthreads(1)

    def read(self, case: int, start: Start) -> Crop:
        stem = str(self.folder / f"case_{case}")
        image, label = self._mapped(f"{stem}.b2nd"), self._mapped(f"{stem}_seg.b2nd")
        pickle.loads(Path(f"{stem}.pkl").read_bytes())
        box = (slice(None), *_box(start))
        image_crop = torch.from_numpy(image[box]).float()
        label_crop = torch.from_numpy(label[box]).to(torch.int16)
        images = torch.empty((1, *image_crop.shape), dtype=torch.float32)
        labels = torch.empty((1, *label_crop.shape), dtype=torch.int16)
        images[0], labels[0] = image_crop, label_crop
        return images, labels[:, 0]

    def _mapped(self, path: str) -> Any:
        import blosc2

        return blosc2.open(urlpath=path, mode="r", dparams={"nthreads": 1}, mmap_mode="r")


class NnUNetCropOnly(NnUNet):
    """nnU-Net's reader without the copy to the batch and the case's properties: only decoding."""

    name = "nnU-Net blosc2, crop only"

    def read(self, case: int, start: Start) -> Crop:
        stem = str(self.folder / f"case_{case}")
        image, label = self._mapped(f"{stem}.b2nd"), self._mapped(f"{stem}_seg.b2nd")
        box = (slice(None), *_box(start))
        return torch.from_numpy(image[box])[None], torch.from_numpy(label[box])


class Nifti(Reader):
    """MONAI: LoadImage of every file, then a spatial crop."""

    name = "MONAI LoadImage, .nii.gz"
    slow = True

    def write(self, folder: Path, volumes: list[Volume]) -> None:
        write_raw(folder, volumes)

    def _items(self) -> list[dict[str, Any]]:
        labels = sorted((self.folder / "labelsTr").iterdir())
        images = self.folder / "imagesTr"
        return [
            {
                "image": [str(path) for path in sorted(images.glob(f"case_{number}_*"))],
                "label": str(label),
            }
            for number, label in enumerate(labels)
        ]

    def open(self) -> None:
        from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

        keys = ("image", "label")
        self.load = Compose([LoadImaged(keys), EnsureChannelFirstd(keys)])
        self.items = self._items()

    def read(self, case: int, start: Start) -> Crop:
        return self._cropped(self.load(self.items[case]), start)

    def _cropped(self, item: Any, start: Start) -> Crop:
        from monai.transforms import SpatialCropd

        # MONAI keeps NIfTI's axes: (C, W, H, D)
        last = [first + size for first, size in zip(start, PATCH, strict=True)]
        crop = SpatialCropd(("image", "label"), roi_start=start[::-1], roi_end=last[::-1])(item)
        image, label = (torch.as_tensor(crop[key]).contiguous() for key in ("image", "label"))
        return image[None].float(), label


class Persistent(Nifti):
    """MONAI: PersistentDataset, which caches loaded volumes with torch.save, then a crop."""

    name = "MONAI PersistentDataset"

    def open(self) -> None:
        from monai.data import PersistentDataset

        super().open()
        self.cached = PersistentDataset(self.items, self.load, cache_dir=self.folder / "cache")
        for number in range(len(self.items)):
            self.cached[number]

    def read(self, case: int, start: Start) -> Crop:
        return self._cropped(self.cached[case], start)

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.folder / "cache").iterdir())


class Mapped(Reader):
    """The floor: an uncompressed file, memory-mapped and copied to memory that is used again."""

    name = "memory-mapped .npy"

    def write(self, folder: Path, volumes: list[Volume]) -> None:
        folder.mkdir()
        for number, (image, label) in enumerate(volumes):
            np.save(folder / f"image_{number}.npy", image)
            np.save(folder / f"label_{number}.npy", label)

    def open(self) -> None:
        arrays: Callable[[str], list[Any]] = lambda kind: [  # noqa: E731
            np.load(self.folder / f"{kind}_{number}.npy", mmap_mode="r")
            for number in range(len(list(self.folder.glob("image_*"))))
        ]
        self.images, self.labels = arrays("image"), arrays("label")
        self.image = np.empty((1, len(self.images[0]), *PATCH), np.float32)
        self.label = np.empty((1, *PATCH), self.labels[0].dtype)

    def read(self, case: int, start: Start) -> Crop:
        box = _box(start)
        self.image[0] = self.images[case][:, *box]
        self.label[0] = self.labels[case][box]
        return torch.from_numpy(self.image), torch.from_numpy(self.label)


READERS = (Ours, NnUNet, NnUNetCropOnly, Nifti, Persistent, Mapped, PlainZarr, RustZarr)


def _box(start: Start) -> tuple[slice, ...]:
    return tuple(slice(first, first + size) for first, size in zip(start, PATCH, strict=True))
