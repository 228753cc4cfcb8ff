"""Batches of crops, read ahead by other processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver, popen_forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from segresmamba.data.store.dataset import Dataset
from segresmamba.data.stream.batch import Batch, BatchLayout, BufferPool, SharedBatch
from segresmamba.data.stream.sampler import PatchSampler, rank_indices
from segresmamba.errors import DataError

if TYPE_CHECKING:  # readers need no configuration library
    from segresmamba.config import DataConfig

_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}


def make_loader(
    dataset: Dataset,
    case_ids: Sequence[str],
    config: DataConfig,
    seed: int,
    *,
    rank: int,
    world_size: int,
    micro_batch: int,
    start_index: int,
) -> Iterator[Batch]:
    """Read one rank's micro batches, without end, beginning anywhere.

    Args:
        dataset: An opened store.
        case_ids: Cases to draw crops from.
        config: Patch size, foreground share, reader processes.
        seed: Of the crops' places.
        rank: Of this process.
        world_size: Number of ranks.
        micro_batch: Crops per batch of a rank.
        start_index: Number of the first crop for all ranks together: 0, or where a run goes on.

    Raises:
        DataError: At once, if a volume is smaller than the patch; while reading, if a stored chunk
            is damaged.
    """
    in_process = config.workers == 0
    reader = _Reader(
        PatchSampler(
            dataset,
            case_ids,
            config.patch,
            seed,
            config.foreground_fraction,
            config.crops_per_case,
        ),
        shared=not in_process,
    )
    loader = DataLoader(
        reader,
        batch_sampler=rank_indices(
            rank=rank, world_size=world_size, micro_batch=micro_batch, start_index=start_index
        ),
        collate_fn=_only,
        num_workers=config.workers,
        multiprocessing_context=None if in_process else _worker_context(),
        prefetch_factor=None if in_process else config.prefetch,
        persistent_workers=not in_process,
        pin_memory=torch.cuda.is_available(),
        # Of its own: the DataLoader draws a seed for its workers (which draw nothing) from it, and
        # must not advance the RNG state that a checkpoint restores.
        generator=torch.Generator(),
    )
    return _batches(loader)


def _batches(loader: DataLoader[Batch | SharedBatch | DataError]) -> Iterator[Batch]:
    for item in loader:
        if isinstance(item, DataError):
            raise item
        # With a GPU, the DataLoader has unpacked and pinned it.
        yield item.unpack() if isinstance(item, SharedBatch) else item


class _Reader(TorchDataset["SharedBatch | DataError"]):
    """Reads the crops of one batch, in whatever process it finds itself."""

    def __init__(self, sampler: PatchSampler, *, shared: bool) -> None:
        self._sampler = sampler
        self._memory = BufferPool(shared)
        records = [sampler.dataset[case_id].record for case_id in sampler.case_ids]
        self._channels = records[0].shape_CDHW[0]
        self._label_dtype = np.result_type(*{record.label_dtype for record in records}).name

    def __getitems__(self, indices: list[int]) -> list[SharedBatch | DataError]:
        try:
            return [self._read(indices)]
        except DataError as error:
            # As a value: torch would turn the exception of a worker into a RuntimeError of text.
            return [error]

    def _read(self, indices: list[int]) -> SharedBatch:
        places = [self._sampler.locate(index) for index in indices]
        cases = [self._sampler.dataset[case_id] for case_id, _ in places]
        room = BatchLayout(len(indices), self._channels, self._sampler.patch, self._label_dtype)
        memory = self._memory.take(room.bytes)
        image_BCDHW, label_BDHW = room.split(self._memory.content(memory))
        for row, (case, (_, start_DHW)) in enumerate(zip(cases, places, strict=True)):
            case.crop_into(start_DHW, image_BCDHW[row], label_BDHW[row])
        return SharedBatch(
            room,
            memory,
            normalisation_BC4=np.stack([case.normalisation_C4 for case in cases]),
            index_B=tuple(indices),
            case_ids=tuple(case.case_id for case in cases),
        )


class _ReaderPopen(popen_forkserver.Popen):
    """A reader's end is a kill: it holds SIGTERM back, and has nothing to tidy up."""

    def terminate(self) -> None:
        self.kill()


class _ReaderProcess(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _ReaderPopen(process_obj)


class _ReaderContext(ForkServerContext):
    Process = _ReaderProcess


def _worker_context() -> ForkServerContext:
    """Readers fork from a server process that has only imported this module.

    A fork of this process would inherit the locks of its threads as they are, and the object
    store's runtime without its threads, and could hang.

    They inherit a mask that holds back the signals by which a user or Slurm asks a job to stop.
    Slurm sends these to every process; a reader that died of one would take the training down
    before its last checkpoint. Readers end when the loader does.
    """
    context = _ReaderContext()
    context.set_forkserver_preload([__name__])
    resource_tracker.ensure_running()  # resets the mask if it is started later
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _only(items: list[SharedBatch | DataError]) -> SharedBatch | DataError:
    (item,) = items
    return item
