"""Batches of crops, read ahead by other processes.

Each reader makes whole batches, so the DataLoader's own collating is not used. Batches arrive in
the order of their numbers for any number of readers.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import warnings
from collections.abc import Generator, Iterable, Sequence
from multiprocessing import forkserver, parent_process, popen_forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from segresmamba.data.store.dataset import Case, Dataset
from segresmamba.data.stream.batch import (
    PADDING,
    Batch,
    BatchLayout,
    BufferPool,
    SharedBatch,
    too_little_shared_memory,
)
from segresmamba.data.stream.sampler import PatchSampler, rank_indices
from segresmamba.errors import DamagedCaseError, DataError

if TYPE_CHECKING:  # readers do not need the configuration library
    from segresmamba.config import DataConfig

logger = logging.getLogger(__name__)

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
) -> Generator[Batch]:
    """Read one rank's micro batches, without end, from any crop on. Closing it ends the readers.

    Args:
        dataset: An opened store.
        case_ids: Cases to draw crops from.
        config: Patch size, foreground share, reader processes.
        seed: Seed of the crops' places.
        rank: This process's rank.
        world_size: Number of ranks.
        micro_batch: Crops in a batch of one rank.
        start_index: Number of the first crop of all ranks together. It is 0, or the number at which
            a stopped run goes on.

    Raises:
        DataError: From the iterator, if more cases are damaged than `data.max_bad_cases` allows, or
            the store cannot be read.
    """
    in_process = config.workers == 0
    reader = _Reader(
        PatchSampler(
            dataset,
            case_ids,
            config.patch,
            seed,
            config.foreground_fraction,
        ),
        shared=not in_process,
        replacements=config.bad_cases_allowed(len(dataset)),
    )
    _note_shared_cores(config.workers)
    loader = DataLoader(
        reader,
        batch_sampler=rank_indices(
            rank=rank, world_size=world_size, micro_batch=micro_batch, start_index=start_index
        ),
        collate_fn=itemgetter(0),  # the only item is the whole batch
        num_workers=config.workers,
        multiprocessing_context=None if in_process else _reader_context(),
        prefetch_factor=None if in_process else config.prefetch,
        persistent_workers=not in_process,
        # A training on the CPU has not used the GPU that may be there, and must not begin to.
        pin_memory=torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]
        # The DataLoader draws a seed for its workers, which do not use it. Drawn from torch's
        # global generator, it would advance the RNG state that a checkpoint restores.
        generator=torch.Generator(),
    )
    return _batches(loader)


def prepare_readers() -> None:
    """Start the server that readers are forked from, while the caller imports and loads the rest.

    It takes seconds to import torch. Without this call the first batch would wait for it.
    """
    _reader_context()


def _note_shared_cores(workers: int) -> None:
    """Say in our words what torch warns of when it makes the readers."""
    cores = len(os.sched_getaffinity(0))
    if workers > cores:
        logger.info("data.workers=%d: the readers share %d core(s)", workers, cores)
    warnings.filterwarnings("ignore", "This DataLoader will create .* worker processes")


def _batches(loader: DataLoader[Batch | SharedBatch | DataError]) -> Generator[Batch]:
    try:
        items = iter(loader)
    except OSError as error:
        # Of a semaphore it names no file; of a full disk it does.
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        raise too_little_shared_memory("the semaphores of queues") from None
    for item in items:
        if isinstance(item, DataError):
            raise item
        # With a GPU, the DataLoader has already unpacked the batch, by `SharedBatch.pin_memory`.
        yield item.unpack() if isinstance(item, SharedBatch) else item


class _Reader(TorchDataset["SharedBatch | DataError"]):
    """Reads all crops of a batch at once, in the training process or in a reader process.

    A crop that touches damaged data is replaced, by a rule that only its number decides. So it is
    replaced by the same crop in another reader and after a restart.

    Args:
        sampler: Says where each crop lies.
        shared: Whether the batches are read in another process.
        replacements: How many damaged cases one crop may meet.
    """

    def __init__(self, sampler: PatchSampler, *, shared: bool, replacements: int) -> None:
        self._sampler, self._replacements = sampler, replacements
        self._buffers = BufferPool(shared)
        records = [sampler.dataset[case_id].record for case_id in sampler.case_ids]
        self._channels = records[0].shape_CDHW[0]
        # Cases may store uint8 or int16. A batch has one dtype that holds the labels of all.
        dtypes: set[str] = {record.label_dtype for record in records}
        self._ignore_value = sampler.dataset.manifest.storage.ignore_value
        smaller = sampler.dataset.smaller_than(sampler.patch, sampler.case_ids)
        if smaller or self._ignore_value is not None:
            dtypes.add(np.dtype(np.int16).name)  # uint8 cannot hold PADDING
        self._label_dtype = np.result_type(*dtypes).name

    def __getitems__(self, indices: list[int]) -> list[SharedBatch | DataError]:
        layout = BatchLayout(len(indices), self._channels, self._sampler.patch, self._label_dtype)
        try:
            buffer = self._buffers.take(layout.bytes)
        except DataError as error:
            return [error]  # see below
        image_BCDHW, label_BDHW = (
            part.numpy() for part in layout.split(self._buffers.content(buffer))
        )
        damaged: dict[str, str] = {}
        try:
            cases = [
                self._read(index, image_BCDHW[row], label_BDHW[row], damaged)
                for row, index in enumerate(indices)
            ]
        except DataError as error:
            self._buffers.free(buffer)
            # Not raised: torch would turn a worker's exception into a RuntimeError of its text.
            return [error]
        return [
            SharedBatch(
                layout,
                buffer,
                normalisation_BC4=np.stack([case.normalisation_C4 for case in cases]),
                index_B=tuple(indices),
                case_ids=tuple(case.case_id for case in cases),
                damaged=damaged,
            )
        ]

    def _read(
        self,
        index: int,
        image_CDHW: npt.NDArray[Any],
        label_DHW: npt.NDArray[Any],
        damaged: dict[str, str],
    ) -> Case:
        """Read a crop, or the one that replaces it, and return its case; note damaged cases."""
        for attempt in range(self._replacements + 1):
            case = self._sampler.case_of(index, attempt)
            try:
                _, start_DHW = self._sampler.locate(index, attempt)
                _crop_padded(case, start_DHW, image_CDHW, label_DHW)
                if self._ignore_value is not None:
                    label_DHW[label_DHW == self._ignore_value] = PADDING
            except DamagedCaseError as error:
                damaged[case.case_id] = f"{error.where}: {error.got}"
                if not self._replacements:
                    raise
                image_CDHW[...], label_DHW[...] = 0, 0  # a part may have been written
            else:
                return case
        raise too_many_damaged(self._sampler.dataset.where, damaged, self._replacements)


def _crop_padded(
    case: Case,
    start_DHW: tuple[int, int, int],
    image_CDHW: npt.NDArray[Any],
    label_DHW: npt.NDArray[Any],
) -> None:
    """Read a crop; outside the case, repeat the image's border and mark the label as `PADDING`."""
    before_3 = [max(-first, 0) for first in start_DHW]
    inside = tuple(
        slice(before, before + size)
        for before, size in zip(before_3, np.minimum(case.shape_DHW, label_DHW.shape), strict=True)
    )
    depth, height, width = (max(first, 0) for first in start_DHW)
    case.crop_into((depth, height, width), image_CDHW[:, *inside], label_DHW[inside])
    if label_DHW[inside].size == label_DHW.size:
        return
    for axis, part in enumerate(inside):
        along = np.moveaxis(image_CDHW, axis + 1, 0)
        along[: part.start], along[part.stop :] = along[part.start], along[part.stop - 1]
    outside_DHW = np.ones(label_DHW.shape, bool)
    outside_DHW[inside] = False
    label_DHW[outside_DHW] = PADDING


def too_many_damaged(where: str, case_ids: Iterable[str], allowed: int) -> DataError:
    """The error that names damaged cases, of which `data.max_bad_cases` allows fewer."""
    names = sorted(case_ids)
    return DataError(
        f"{len(names)} stored cases are damaged, and data.max_bad_cases allows {allowed}",
        where=where,
        got=", ".join(names),
        remedy="run `segresmamba verify --fix` on the store, which converts damaged cases anew, "
        "then the same command; or allow more with data.max_bad_cases",
    )


class _ReaderPopen(popen_forkserver.Popen):
    """Ends a reader by SIGKILL: it blocks SIGTERM, and it has nothing to tidy up."""

    def terminate(self) -> None:
        self.kill()


class _ReaderProcess(ForkServerProcess):
    """A reader that ends with the process that made it, however that ends."""

    def run(self) -> None:
        # A reader is a child of the server, and holds a pipe by which the server knows that it is
        # still needed. So after a SIGKILL of the trainer both would wait for each other for ever.
        threading.Thread(target=_end_with_trainer, daemon=True).start()
        super().run()

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _ReaderPopen(process_obj)


def _end_with_trainer() -> None:
    """Wait for the trainer's end of a pipe to close, which no other process has."""
    trainer = parent_process()
    assert trainer is not None
    trainer.join()
    os.kill(os.getpid(), signal.SIGKILL)


class _ReaderContext(ForkServerContext):
    Process = _ReaderProcess


def _reader_context() -> ForkServerContext:
    """Fork readers from a server process that has only imported this module.

    A fork of the training process could hang: it would inherit locks that threads hold, and the
    object store's runtime without its threads.

    Readers inherit a signal mask that blocks the signals by which a user or Slurm asks a job to
    stop. Slurm sends these to every process, and a reader that died of one would end the training
    before its last checkpoint. Readers end when the loader or its process does, and the server ends
    with the last of them.
    """
    context = _ReaderContext()
    context.set_forkserver_preload([__name__])
    # Not left to the fork server: starting the tracker unblocks SIGINT and SIGTERM again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context
