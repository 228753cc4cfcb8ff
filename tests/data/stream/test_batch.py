from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from segresmamba.data.stream.batch import BatchLayout, BufferPool, SharedBatch

LAYOUT = BatchLayout(crops=2, channels=1, size_DHW=(2, 3, 4), label_dtype="int16")


def shared_batch(pool: BufferPool) -> SharedBatch:
    buffer = pool.take(LAYOUT.bytes)
    image, label = LAYOUT.split(pool.content(buffer))
    image += 1.5
    label += 7
    return SharedBatch(LAYOUT, buffer, np.ones((2, 1, 4), np.float32), (4, 5), ("a", "b"))


def test_a_batch_is_what_was_written_to_its_buffer() -> None:
    batch = shared_batch(BufferPool(shared=False)).unpack()
    assert batch.image_BCDHW.shape == (2, 1, 2, 3, 4)
    assert (batch.image_BCDHW == 1.5).all()
    assert batch.label_BDHW.dtype == torch.int16
    assert (batch.label_BDHW == 7).all()
    assert batch.index_B.tolist() == [4, 5]


@pytest.mark.parametrize("shared", [False, True])
def test_a_buffer_is_used_again_when_no_tensor_uses_it(shared: bool) -> None:
    pool = BufferPool(shared=shared)
    first = shared_batch(pool)
    view = first.unpack().label_BDHW[1, 0]
    gc.collect()
    assert pool.take(LAYOUT.bytes).data_ptr() != first.buffer.data_ptr()
    assert (view == 7).all()
    del view
    again = pool.take(LAYOUT.bytes)
    assert again.data_ptr() == first.buffer.data_ptr()
    assert not pool.content(again).any()


def test_pinning_gives_the_buffer_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # no GPU is needed
    pool = BufferPool(shared=True)
    first = shared_batch(pool)
    pinned = first.pin_memory()
    assert pool.take(LAYOUT.bytes).data_ptr() == first.buffer.data_ptr()
    assert (pinned.image_BCDHW == 1.5).all()


def test_batches_of_another_size_get_a_buffer_of_their_own() -> None:
    pool = BufferPool(shared=False)
    buffer = pool.take(LAYOUT.bytes)
    buffer[0] = 0
    assert len(pool.take(2 * LAYOUT.bytes)) > len(buffer)
