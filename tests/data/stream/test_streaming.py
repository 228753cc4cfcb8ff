"""Properties of a whole stream of crops, whatever process reads it."""

from __future__ import annotations

import gc
import multiprocessing
from collections import Counter
from itertools import islice
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segresmamba.config import DataConfig
from segresmamba.data import Dataset, PatchSampler, make_loader, open_dataset
from segresmamba.data.stream.sampler import rank_indices

PATCH = (16, 16, 16)
PER_CASE = 2
"""Crops of each case in an epoch."""


@pytest.fixture(scope="module")
def dataset(sound_store: Path) -> Dataset:
    return open_dataset(sound_store)


def sampler(dataset: Dataset, fraction: float = 1 / 3) -> PatchSampler:
    return PatchSampler(dataset, dataset.case_ids, PATCH, 0, fraction)


def indices(first: int, steps: int, ranks: int, batch: int) -> list[int]:
    """Numbers of the crops that all ranks together read in so many steps."""
    micro = batch // ranks
    return [
        index
        for rank in range(ranks)
        for part in islice(
            rank_indices(rank=rank, world_size=ranks, micro_batch=micro, start_index=first), steps
        )
        for index in part
    ]


@settings(deadline=None, max_examples=60)
@given(
    stops=st.lists(st.integers(0, 9), max_size=4),
    ranks=st.lists(st.sampled_from([1, 2, 3, 4, 6, 12]), min_size=5, max_size=5),
)
def test_an_epoch_over_restarts_at_other_numbers_of_ranks_repeats_and_loses_no_case(
    dataset: Dataset, stops: list[int], ranks: list[int]
) -> None:
    """A job is stopped after so many steps, again and again, and goes on with other ranks."""
    batch, done, seen = 12, 0, list[int]()
    for steps, size in zip((*stops, 10), ranks[: len(stops) + 1], strict=True):
        seen += indices(done * batch, steps, size, batch)
        done += steps
    assert sorted(seen) == list(range(done * batch))
    source, epoch = sampler(dataset), len(dataset) * PER_CASE
    epochs: dict[int, Counter[str]] = {}
    for index in seen:
        cases = epochs.setdefault(index // epoch, Counter())
        cases[source.locate(index)[0]] += 1
    complete = [cases for cases in epochs.values() if cases.total() == epoch]
    assert len(complete) == done * batch // epoch
    assert all(set(cases.values()) == {PER_CASE} for cases in complete)


@settings(deadline=None, max_examples=60)
@given(step=st.integers(0, 10**6), ranks=st.sampled_from([1, 2, 4, 8]))
def test_foreground_crops_of_a_global_batch_are_as_many_as_its_share_says(
    dataset: Dataset, step: int, ranks: int
) -> None:
    """Two crops a rank and a third of all: rounded for each rank, it would be none or half."""
    batch = 2 * ranks
    source = sampler(dataset)
    drawn = sum(source.is_foreground(index) for index in indices(step * batch, 1, ranks, batch))
    assert drawn in {batch // 3, -(-batch // 3)}


def _crops(dataset: Dataset, answers: multiprocessing.Queue[float]) -> None:
    image, _ = dataset["case_1"].crop((0, 0, 0), PATCH)
    answers.put(float(image.sum()))


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_process_reads_after_its_parent_has_read(sound_store: Path, method: str) -> None:
    dataset = open_dataset(sound_store)
    expected = float(dataset["case_1"].crop((0, 0, 0), PATCH)[0].sum())
    np.asarray(dataset["case_1"].open_image()[:, :4, :4, :4])  # Zarr's event loop is running, too
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    process = context.Process(target=_crops, args=(dataset, answers))
    process.start()
    assert answers.get(timeout=120) == expected
    process.join(120)
    assert process.exitcode == 0


def test_memory_does_not_grow_over_ten_thousand_crops(dataset: Dataset) -> None:
    config = DataConfig(store=dataset.where, patch=PATCH, workers=0)
    batches = make_loader(
        dataset, dataset.case_ids, config, 0, rank=0, world_size=1, micro_batch=10, start_index=0
    )
    process = psutil.Process()
    for _ in islice(batches, 100):
        pass
    gc.collect()
    before, files = process.memory_info().rss, process.num_fds()
    for _ in islice(batches, 1000):
        pass
    gc.collect()
    assert process.memory_info().rss - before < 4 * 2**20  # a leak of a crop's chunks is 10 GiB
    assert process.num_fds() == files


def test_readers_use_their_shared_memory_again(dataset: Dataset) -> None:
    """A reader does not make a buffer for every batch: it takes those that the trainer released."""
    config = DataConfig(store=dataset.where, patch=(32, 32, 32), workers=1, prefetch=2)
    batches = make_loader(
        dataset, dataset.case_ids, config, 0, rank=0, world_size=1, micro_batch=2, start_index=0
    )
    next(batches)
    # By its number: tests of ranks may have left a server of theirs among the children.
    server = psutil.Process(forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]
    for _ in islice(batches, 50):
        pass
    # Readers of earlier tests may still be about to end.
    reader = max(server.children(), key=psutil.Process.create_time)
    maps = {part.path for part in reader.memory_maps()}
    shared = {path for path in maps if path.startswith("/dev/shm/torch_")}
    assert 1 <= len(shared) <= 2 + 3


def test_a_batch_that_is_kept_is_not_written_over(dataset: Dataset) -> None:
    config = DataConfig(store=dataset.where, patch=(32, 32, 32), workers=1)

    def batches(workers: int) -> list[torch.Tensor]:
        loader = make_loader(
            dataset, dataset.case_ids, config.model_copy(update={"workers": workers}), 0,
            rank=0, world_size=1, micro_batch=1, start_index=0,
        )  # fmt: skip
        # Only a view of each batch is kept. Its buffer has to stay as it is.
        return [batch.image_BCDHW[0, 0] for batch in islice(loader, 12)]

    for one, other in zip(batches(1), batches(0), strict=True):
        assert torch.equal(one, other)


def test_a_rank_never_keeps_a_volume(dataset: Dataset) -> None:
    """Only the indices of a crop's arrays stay: a few bytes for each chunk, no voxels."""
    case = Dataset(dataset.files, dataset.manifest)["case_1"]
    case.crop((0, 0, 0), PATCH)
    kept = sum(array._index.nbytes for array in case._arrays.values())
    voxels = 2 * 2 * np.prod(case.shape_DHW)
    assert 0 < kept < voxels / 50
