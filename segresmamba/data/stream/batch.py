"""A batch of crops, and its way from a reader process to the one that trains.

Crops are decoded straight into shared memory. Fresh shared memory costs several times what reading
into it does, because the system clears and maps it page by page, so a reader keeps its pieces and
writes into them again once the trainer has let go of the batch that lay there.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_FLAG_BYTES = 64  # a cache line: 1 while the batch is on its way or in use


@dataclass(frozen=True)
class Batch:
    """Crops as stored: intensities are neither normalised nor augmented."""

    image_BCDHW: Tensor
    """float32."""
    normalisation_BC4: Tensor
    """Low, high, mean and deviation of each channel, see `Case.normalisation_C4`; float32."""
    label_BDHW: Tensor
    """As stored, uint8 or int16: an eighth of the copying that int64 would take."""
    index_B: Tensor
    """Numbers of the crops in the run, int64, always in host memory."""
    case_ids: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; from pinned memory the copy does not block."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU can copy from by itself (called by the DataLoader)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            image_BCDHW=change(self.image_BCDHW),
            normalisation_BC4=change(self.normalisation_BC4),
            label_BDHW=change(self.label_BDHW),
        )


@dataclass(frozen=True)
class BatchLayout:
    """Where the crops of one batch are decoded to, filled with zeros.

    Args:
        crops: Number of crops.
        channels: Of the image.
        size_DHW: Of a crop.
        label_dtype: Of the label.
    """

    crops: int
    channels: int
    size_DHW: tuple[int, int, int]
    label_dtype: str

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(B, C, D, H, W), of float32."""
        return self.crops, self.channels, *self.size_DHW

    @property
    def image_bytes(self) -> int:
        """Of the image; the label follows."""
        return 4 * math.prod(self.image_shape)

    @property
    def bytes(self) -> int:
        """Of both."""
        voxels = self.crops * math.prod(self.size_DHW)
        return self.image_bytes + voxels * np.dtype(self.label_dtype).itemsize

    def split(self, memory: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Image and label as arrays that lie in the memory."""
        image = memory[: self.image_bytes].view(np.float32).reshape(self.image_shape)
        label = memory[self.image_bytes :].view(self.label_dtype)
        return image, label.reshape(self.crops, *self.size_DHW)


@dataclass(frozen=True)
class SharedBatch:
    """A batch as readers hand it over: all large things in one piece of memory."""

    room: BatchLayout
    memory: Tensor
    """uint8, the flag first; shared, if it comes from another process."""
    normalisation_BC4: npt.NDArray[np.float32]
    index_B: tuple[int, ...]
    case_ids: tuple[str, ...]

    def pin_memory(self) -> Batch:
        """As `Batch.pin_memory`; the reader can use its memory again."""
        return self.unpack().pin_memory()

    def unpack(self) -> Batch:
        """The batch, without copying. The memory is the reader's again when all of it is gone."""
        content = self.memory.numpy()[_FLAG_BYTES:]
        whole = torch.from_numpy(content)  # whose storage, shared by all views, keeps `content`
        weakref.finalize(content, self.memory.__setitem__, 0, 0).atexit = False
        image = whole[: self.room.image_bytes].view(torch.float32)
        label = whole[self.room.image_bytes :].view(getattr(torch, self.room.label_dtype))
        return Batch(
            image_BCDHW=image.view(self.room.image_shape),
            normalisation_BC4=torch.from_numpy(self.normalisation_BC4),
            label_BDHW=label.view(self.room.crops, *self.room.size_DHW),
            index_B=torch.tensor(self.index_B),
            case_ids=self.case_ids,
        )


@dataclass(frozen=True)
class BufferPool:
    """The pieces of memory that one reader writes batches to."""

    shared: bool
    """Whether the batches are read by another process."""
    _pieces: list[Tensor] = field(default_factory=list)

    def take(self, count: int) -> Tensor:
        """A piece of so many bytes after its flag, all zero; a new one if all are in use."""
        for piece in self._pieces:
            if len(piece) == _FLAG_BYTES + count and piece[0] == 0:
                piece.numpy().fill(0)
                break
        else:
            # By NumPy, which asks for huge pages.
            piece = torch.from_numpy(np.zeros(_FLAG_BYTES + count, np.uint8))
            if self.shared:
                piece.share_memory_()  # type: ignore[no-untyped-call]
            self._pieces.append(piece)
        piece[0] = 1
        return piece

    @staticmethod
    def content(piece: Tensor) -> npt.NDArray[np.uint8]:
        """A piece without its flag."""
        return piece.numpy()[_FLAG_BYTES:]
