"""The output of networks for a whole volume, window by window, without ever holding it whole.

Windows go from the first slice to the last. Their outputs are summed up in bricks, which lie
between the edges of the windows along all three axes. As soon as the last window over a brick has
been added, the brick is handed on and freed. With an overlap of a half the bricks that are held
take about as much as the logits of half a window's depth of slices.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations, groupby, pairwise, product
from math import prod
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segresmamba import data
from segresmamba.config import Config
from segresmamba.data.volumes.mapped_arrays import release_freed_memory
from segresmamba.data.volumes.resampling import VoxelRange
from segresmamba.errors import warn_once
from segresmamba.inference.windows import Box, Window, WindowGrid
from segresmamba.task.memory_errors import ran_out
from segresmamba.task.precision import Autocast
from segresmamba.tracking.memory import status_kib

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Is called with the number of windows that are done, and that of all windows."""


@dataclass(frozen=True)
class Member:
    """One network of an ensemble, and how it computes a window."""

    network: nn.Module
    patch: tuple[int, int, int]
    """Window size (D, H, W), the size of the training crops."""
    precision: str
    """Autocast type, one of fp32, bf16, fp16."""
    mirror_axes: tuple[int, ...] = ()
    """Axes (0 is D) along which windows are mirrored; the outputs of all are averaged."""

    @classmethod
    def from_config(
        cls,
        network: nn.Module,
        config: Config,
        *,
        mirror: bool = False,
        precision: str | None = None,
    ) -> Member:
        """A network as it was trained.

        Args:
            network: The network.
            config: The configuration that it was trained with.
            mirror: Whether to average over the mirrorings that training used.
            precision: Another precision than that of the training.
        """
        flips = config.augment.flip_axes if config.augment.flip_probability else ()
        axes = tuple(sorted("DHW".index(axis) for axis in flips)) if mirror else ()
        return cls(network, config.data.patch, precision or config.train.precision, axes)

    def logits(self, x_BCDHW: Tensor) -> Tensor:
        """The logits of normalised windows, float32, averaged over the mirrorings."""
        autocast = Autocast(self.network, self.precision)
        summed: Tensor = autocast(x_BCDHW).float()
        flips = [
            [axis + 2 for axis in axes]
            for count in range(1, len(self.mirror_axes) + 1)
            for axes in combinations(self.mirror_axes, count)
        ]
        for axes in flips:
            summed += autocast(x_BCDHW.flip(axes)).float().flip(axes)
        return summed / (len(flips) + 1) if flips else summed


@dataclass(frozen=True)
class Brick:
    """The finished logits of a part of the volume."""

    box: Box
    logits_KDHW: Tensor

    def computed(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """A function of the logits, on the CPU if their device cannot hold what it takes."""
        try:
            return function(self.logits_KDHW)
        except RuntimeError as error:
            if not ran_out(error):
                raise
        # Not in the handler, where the error's traceback keeps the failed attempt's tensors.
        device = self.logits_KDHW.device
        warn_once(logger, "the logits cannot be decoded on %s: decoding them on the CPU", device)
        return function(self.logits_KDHW.cpu())


class SlidingWindow:
    """Networks whose logits are averaged, as nnU-Net averages those of its folds.

    Args:
        members: The networks, on `device`. Each has windows of its own patch.
        device: Where they compute. The sums lie there too, or on the CPU if it cannot hold them.
        overlap: Least overlap of neighbouring windows, as a share of their size.
        window_batch: Windows computed at once.
        zeros_around: Whether zeros, and not its outermost voxels, extend a volume that is smaller
            than a window, as nnU-Net extends its normalised images.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        device: torch.device,
        overlap: float,
        window_batch: int,
        zeros_around: bool = False,
    ) -> None:
        self._members = members
        self.device = device
        self._overlap, self._window_batch = overlap, window_batch
        self._extend: Literal["constant", "edge"] = "constant" if zeros_around else "edge"

    @property
    def networks(self) -> list[nn.Module]:
        """The networks of all members."""
        return [member.network for member in self._members]

    def bricks(
        self,
        image_CDHW: NDArray[np.generic],
        normalisation_C4: NDArray[np.floating],
        box: Box,
        progress: Progress = lambda done, total: None,
    ) -> Iterator[Brick]:
        """Compute the logits of a box of a volume, from its first slices to its last.

        The volume stays on the CPU; each window is moved to the device and normalised there, as a
        training crop is. A volume smaller than the patch is extended by its outermost voxels: zeros
        would suit MR, where air is 0, but not CT, where air is -1000.

        Args:
            image_CDHW: Intensities as stored.
            normalisation_C4: Low, high, mean and deviation of each channel, for `data.normalise`.
            box: The part of the volume, not empty.
            progress: What is told of each batch of windows.
        """
        grids = {
            patch: WindowGrid.over(box, image_CDHW.shape[1:], patch, self._overlap)
            for patch in dict.fromkeys(member.patch for member in self._members)
        }
        sums = _Sums(list(grids.values()), self.device)
        bounds_1C4 = torch.as_tensor(normalisation_C4, dtype=torch.float32, device=self.device)[
            None
        ]
        total, done = sum(map(len, grids.values())), 0
        heap = _Heap()
        for patch, windows in _batches(grids, self._window_batch):
            cuts = [window.cut_from(image_CDHW, self._extend) for window in windows]
            cut = torch.from_numpy(np.stack(cuts))
            x_BCDHW = data.normalise(cut.to(self.device), bounds_1C4)
            try:
                logits_BKDHW = self._logits(patch, x_BCDHW)
            except RuntimeError as error:
                if not ran_out(error) or not sums.move_to_cpu():
                    raise
                logits_BKDHW = None
            # Not in the handler, where the error's traceback keeps the failed attempt's tensors.
            if logits_BKDHW is None:
                logits_BKDHW = self._logits(patch, x_BCDHW)
            for window, logits_KDHW in zip(windows, logits_BKDHW, strict=True):
                yield from sums.add(window, logits_KDHW)
            done += len(windows)
            progress(done, total)
            heap.release_if_grown()

    def _logits(self, patch: tuple[int, int, int], x_BCDHW: Tensor) -> Tensor:
        """What the members with this patch contribute to the mean over all members."""
        first, *others = [member for member in self._members if member.patch == patch]
        summed = first.logits(x_BCDHW)
        for member in others:
            summed += member.logits(x_BCDHW)
        return summed if len(self._members) == 1 else summed / len(self._members)


def _batches(
    grids: dict[tuple[int, int, int], WindowGrid], most: int
) -> Iterator[tuple[tuple[int, int, int], list[Window]]]:
    """The windows of all grids by their first slice, in batches of one patch size."""
    windows = [(patch, window) for patch, grid in grids.items() for window in grid]
    windows.sort(key=lambda one: one[1].starts)
    for patch, group in groupby(windows, key=lambda one: one[0]):
        same = [window for _, window in group]
        for first in range(0, len(same), most):
            yield patch, same[first : first + most]


class _Sums:
    """Sums of logits in the bricks between the edges of windows.

    Args:
        grids: All windows, over one box.
        device: Where the sums lie at first.
    """

    def __init__(self, grids: Sequence[WindowGrid], device: torch.device) -> None:
        self._device: torch.device = device
        self._may_move = True
        spans_3 = [[_spans(grid, axis) for grid in grids] for axis in range(3)]
        self._layers, self._rows, self._columns = (
            list(pairwise(sorted({edge for spans in axis for span in spans for edge in span})))
            for axis in spans_3
        )
        self._sums: dict[Box, Tensor] = {}
        self._missing: dict[Box, int] = {
            box: sum(
                prod(
                    sum(bool(_within([interval], span)) for span in spans)
                    for interval, spans in zip(box, of_grid, strict=True)
                )
                for of_grid in zip(*spans_3, strict=True)
            )
            for box in product(self._layers, self._rows, self._columns)
        }

    def add(self, window: Window, logits_KDHW: Tensor) -> Iterator[Brick]:
        """Add a window's logits, and hand on the bricks that are now complete."""
        depth, height, width = window.spans
        layers, rows = _within(self._layers, depth), _within(self._rows, height)
        boxes = list(product(layers, rows, _within(self._columns, width)))
        for box in boxes:
            if box not in self._sums:
                shape = len(logits_KDHW), *(end - first for first, end in box)
                try:
                    self._sums[box] = torch.zeros(shape, device=self._device)
                except RuntimeError as error:
                    if not ran_out(error) or not self.move_to_cpu():
                        raise
                    self._sums[box] = torch.zeros(shape)
        share_D, share_H, share_W = (
            torch.from_numpy(share).to(self._device) for share in window.shares()
        )
        share_DHW = share_D[:, None, None] * share_H[:, None] * share_W
        logits_KDHW = logits_KDHW.to(self._device)
        for box in boxes:
            place = tuple(
                slice(first - start, end - start)
                for (first, end), start in zip(box, window.starts, strict=True)
            )
            self._sums[box].addcmul_(logits_KDHW[:, *place], share_DHW[place])
            self._missing[box] -= 1
            if not self._missing[box]:
                yield Brick(box, self._sums.pop(box))

    def move_to_cpu(self) -> bool:
        """Free the device; False if that has been done before."""
        if not self._may_move:
            return False
        # The logits of a large CT with many classes may take far more memory than its windows.
        logger.warning("the logits do not fit on %s: stitching them on the CPU", self._device)
        self._may_move, self._device = False, torch.device("cpu")
        self._sums = {key: summed.cpu() for key, summed in self._sums.items()}
        return True


class _Heap:
    """Keeps the memory of this process near to what it uses, over thousands of windows.

    The C library's allocator does not always find the gap of a freed output again for the next one
    of the same size. Then the heap grows with each window, to several times of what lives in it.
    """

    def __init__(self) -> None:
        self._before_kib = status_kib("VmRSS") or 0.0

    def release_if_grown(self) -> None:
        """Give freed memory back once the process has grown by a tenth, and by 128 MiB."""
        now_kib = status_kib("VmRSS") or 0.0
        if now_kib > 1.1 * self._before_kib + 128 * 1024:
            release_freed_memory()
            self._before_kib = status_kib("VmRSS") or 0.0


def _spans(grid: WindowGrid, axis: int) -> list[VoxelRange]:
    windows, box = grid.axes[axis], grid.box[axis]
    return [windows.span(index, box) for index in range(len(windows.starts))]


def _within(intervals: Sequence[VoxelRange], span: VoxelRange) -> list[VoxelRange]:
    return [one for one in intervals if span[0] <= one[0] and one[1] <= span[1]]


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the networks have their former modes again."""
    with ExitStack() as stack:
        for network in networks:
            stack.callback(network.train, network.training)
            network.eval()
        with torch.inference_mode():
            yield
