from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from segresmamba.data.stream.batch import BatchLayout, BufferPool, SharedBatch

ROOM = BatchLayout(crops=2, channels=1, size_DHW=(2, 3, 4), label_dtype="int16")


def parcel(memory: BufferPool) -> SharedBatch:
    piece = memory.take(ROOM.bytes)
    image, label = ROOM.split(memory.content(piece))
    image += 1.5
    label += 7
    return SharedBatch(ROOM, piece, np.ones((2, 1, 4), np.float32), (4, 5), ("a", "b"))


def test_a_batch_is_what_was_written_to_its_memory() -> None:
    batch = parcel(BufferPool(shared=False)).unpack()
    assert batch.image_BCDHW.shape == (2, 1, 2, 3, 4)
    assert (batch.image_BCDHW == 1.5).all()
    assert batch.label_BDHW.dtype == torch.int16
    assert (batch.label_BDHW == 7).all()
    assert batch.index_B.tolist() == [4, 5]


@pytest.mark.parametrize("shared", [False, True])
def test_memory_is_used_again_when_no_tensor_looks_at_it(shared: bool) -> None:
    memory = BufferPool(shared=shared)
    first = parcel(memory)
    view = first.unpack().label_BDHW[1, 0]
    gc.collect()
    assert memory.take(ROOM.bytes).data_ptr() != first.memory.data_ptr()
    assert (view == 7).all()
    del view
    again = memory.take(ROOM.bytes)
    assert again.data_ptr() == first.memory.data_ptr()
    assert not memory.content(again).any()


def test_pinning_gives_the_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # no GPU is needed
    memory = BufferPool(shared=True)
    first = parcel(memory)
    pinned = first.pin_memory()
    assert memory.take(ROOM.bytes).data_ptr() == first.memory.data_ptr()
    assert (pinned.image_BCDHW == 1.5).all()


def test_batches_of_another_size_get_memory_of_their_own() -> None:
    memory = BufferPool(shared=False)
    piece = memory.take(ROOM.bytes)
    piece[0] = 0
    assert len(memory.take(2 * ROOM.bytes)) > len(piece)
