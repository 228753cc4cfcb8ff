"""A batch of crops, and its way from a reader process to the training process.

Crops are decoded straight into shared memory. The system clears and maps fresh shared memory page
by page, which costs several times what reading into it does. So a reader keeps its buffers, and
writes into one again when the trainer has released the batch that lay in it.
"""

from __future__ import annotations

import math
import shutil
import socket
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segresmamba.errors import DataError

PADDING = -1
"""Label of voxels that count for nothing in the loss: outside a case that is smaller than a crop,
and where nobody has annotated."""
SHARED_MEMORY = "/dev/shm"
_FLAG_BYTES = 64
"""Before the batch, one cache line: its first byte is 1 while the batch is on its way or in use."""


@dataclass(frozen=True)
class Batch:
    """Crops as stored: intensities are neither normalised nor augmented."""

    image_BCDHW: Tensor
    """Intensities, float32."""
    normalisation_BC4: Tensor
    """Low, high, mean and deviation of each channel, float32, see `Case.normalisation_C4`."""
    label_BDHW: Tensor
    """Label as stored, uint8 or int16: int64 would take eight or four times as much copying. int16
    if it may hold `PADDING`."""
    index_B: Tensor
    """Numbers of the crops in the run, int64, always in host memory."""
    case_ids: tuple[str, ...]
    damaged: Mapping[str, str] = field(default_factory=dict)
    """Cases that crops were to come from, but are damaged, and where. Other cases replace them."""

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to a device. From pinned memory the copy does not block."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copy the batch to page-locked memory. The DataLoader calls this if there is a GPU."""
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
    """How the crops of one batch lie in a buffer: all images, then all labels.

    Args:
        crops: Number of crops.
        channels: Channels of the image.
        size_DHW: Size of a crop in voxels.
        label_dtype: Dtype of the label.
    """

    crops: int
    channels: int
    size_DHW: tuple[int, int, int]
    label_dtype: str

    @property
    def bytes(self) -> int:
        """Bytes of images (float32) and labels."""
        voxels = self.crops * math.prod(self.size_DHW)
        return voxels * (4 * self.channels + np.dtype(self.label_dtype).itemsize)

    def split(self, content: Tensor) -> tuple[Tensor, Tensor]:
        """Views of a buffer's content: image (B, C, D, H, W) and label (B, D, H, W)."""
        image_bytes = 4 * self.channels * self.crops * math.prod(self.size_DHW)
        image = content[:image_bytes].view(torch.float32)
        label = content[image_bytes:].view(getattr(torch, self.label_dtype))
        return (
            image.view(self.crops, self.channels, *self.size_DHW),
            label.view(self.crops, *self.size_DHW),
        )


@dataclass(frozen=True)
class SharedBatch:
    """A batch as a reader hands it over: images and labels lie in one buffer."""

    layout: BatchLayout
    buffer: Tensor
    """Flag and content, uint8. It is shared memory if it comes from another process."""
    normalisation_BC4: npt.NDArray[np.float32]
    index_B: tuple[int, ...]
    case_ids: tuple[str, ...]
    damaged: Mapping[str, str] = field(default_factory=dict)

    def pin_memory(self) -> Batch:
        """Copy like `Batch.pin_memory`. The reader can then use its buffer again."""
        return self.unpack().pin_memory()

    def unpack(self) -> Batch:
        """The batch without a copy. The reader gets its buffer back when no tensor uses it."""
        content = self.buffer.numpy()[_FLAG_BYTES:]
        # Image and label share one storage, which keeps `content` alive. The last view to go
        # takes `content` with it, whose finalizer clears the flag.
        image_BCDHW, label_BDHW = self.layout.split(torch.from_numpy(content))
        weakref.finalize(content, BufferPool.free, self.buffer).atexit = False
        return Batch(
            image_BCDHW=image_BCDHW,
            normalisation_BC4=torch.from_numpy(self.normalisation_BC4),
            label_BDHW=label_BDHW,
            index_B=torch.tensor(self.index_B),
            case_ids=self.case_ids,
            damaged=self.damaged,
        )


@dataclass(frozen=True)
class BufferPool:
    """The buffers that one reader writes batches to."""

    shared: bool
    """Whether another process reads the batches."""
    _buffers: list[Tensor] = field(default_factory=list)

    def take(self, count: int) -> Tensor:
        """A free buffer whose content is `count` zero bytes. A new one is made if none is free.

        Raises:
            DataError: If this machine has too little shared memory for it.
        """
        for buffer in self._buffers:
            if len(buffer) == _FLAG_BYTES + count and buffer[0] == 0:
                buffer.numpy().fill(0)
                break
        else:
            # Made by NumPy, because it asks for huge pages.
            buffer = torch.from_numpy(np.zeros(_FLAG_BYTES + count, np.uint8))
            if self.shared:
                _share(buffer, len(self._buffers))
            self._buffers.append(buffer)
        buffer[0] = 1
        return buffer

    @staticmethod
    def free(buffer: Tensor) -> None:
        """Let the reader use a buffer again. Any process that has the buffer may call this."""
        buffer[0] = 0

    @staticmethod
    def content(buffer: Tensor) -> Tensor:
        """A buffer without its flag."""
        return buffer[_FLAG_BYTES:]


def _share(buffer: Tensor, others: int) -> None:
    """Move a buffer to shared memory, of which a container of Docker has 64 MiB by default."""
    try:
        buffer.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:  # torch's, in which the number of the error is a text
        if "No space left" not in str(error):
            raise
        needed = f"{len(buffer) / 2**20:.1f} MiB for another batch; this reader has {others} there"
        raise too_little_shared_memory(needed) from error


def too_little_shared_memory(needed: str) -> DataError:
    """The error for a machine whose shared memory is too small, or full.

    Args:
        needed: How much for what.
    """
    free_bytes = shutil.disk_usage(SHARED_MEMORY).free
    return DataError(
        "there is too little shared memory for the batches that readers hand over",
        where=f"{SHARED_MEMORY} of {socket.gethostname()}",
        got=f"{free_bytes / 2**20:.1f} MiB are free, needed: {needed}",
        remedy="lower data.workers or data.prefetch, or data.workers=0 to read in the training "
        "process; in a container give it more, as in docker --shm-size=8g",
    )
