"""Batches of crops, read ahead by other processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import forkserver, resource_tracker
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from segresmamba.data.sampler import PatchSampler, rank_indices
from segresmamba.data.store import Dataset
from segresmamba.errors import DataError

if TYPE_CHECKING:  # readers need no configuration library
    from segresmamba.config import DataConfig

_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}


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
            dataset.with_threads(1),  # readers, not threads, are what runs in parallel
            case_ids,
            config.patch,
            seed,
            config.foreground_fraction,
            config.crops_per_case,
        )
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


def _batches(loader: DataLoader[Batch | DataError]) -> Iterator[Batch]:
    for item in loader:
        if isinstance(item, DataError):
            raise item
        yield item


class _Reader(TorchDataset["Batch | DataError"]):
    """Reads the crops of one batch, in whatever process it finds itself."""

    def __init__(self, sampler: PatchSampler) -> None:
        self._sampler = sampler

    def __getitems__(self, indices: list[int]) -> list[Batch | DataError]:
        try:
            return [self._read(indices)]
        except DataError as error:
            # As a value: torch would turn the exception of a worker into a RuntimeError of text.
            return [error]

    def _read(self, indices: list[int]) -> Batch:
        places = [self._sampler.locate(index) for index in indices]
        cases = [self._sampler.dataset[case_id] for case_id, _ in places]
        crops = [
            case.crop(start_DHW, self._sampler.patch)
            for case, (_, start_DHW) in zip(cases, places, strict=True)
        ]
        return Batch(
            image_BCDHW=_stack([image.astype(np.float32, copy=False) for image, _ in crops]),
            normalisation_BC4=_stack([case.normalisation_C4 for case in cases]),
            label_BDHW=_stack([label for _, label in crops]),
            index_B=torch.tensor(indices),
            case_ids=tuple(case.case_id for case in cases),
        )


def _worker_context() -> Any:
    """Readers fork from a server process that has only imported this module.

    A fork of this process would inherit Zarr's event loop without its thread, and hang on the first
    read if this process has read before.

    They inherit a mask that holds back the signals by which a user or Slurm asks a job to stop.
    Slurm sends these to every process; a reader that died of one would take the training down
    before its last checkpoint. Readers end when the loader does.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    resource_tracker.ensure_running()  # resets the mask if it is started later
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _only(items: list[Batch | DataError]) -> Batch | DataError:
    (item,) = items
    return item


def _stack(arrays: Sequence[npt.NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
