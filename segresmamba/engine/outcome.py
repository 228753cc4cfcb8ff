"""What a step has come to: its loss, the norm of its gradient, and whether some rank wants to stop.

The host queues a step long before the device has computed it. A host that read these numbers at
once would wait, and then the device would wait for the next step to be queued. So they are copied
to the host's memory as soon as they exist, and read when the next step is half queued. Every rank
reads the same vote at the same place, and so all of them stop after the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

Crops = tuple[list[int], tuple[str, ...]]
"""Numbers and case ids of a micro batch's crops."""


@dataclass(frozen=True)
class Outcome:
    """What the host has read of a step."""

    loss: float
    """Mean over this rank's micro batches."""
    gradient_norm: float
    """Before clipping, the same on all ranks. If it is not finite, the step was skipped."""
    stop: bool
    """Whether some rank was asked to stop when it had queued this step."""


class QueuedStep:
    """A step that the host has queued (collective).

    Args:
        step: Its number.
        lr: Its learning rate.
        crops: What this rank's micro batches were.
        losses: Their losses, float32 (), on the device.
        gradient_norm: Norm of the gradient before clipping, float32 (), on the device.
        stop: Whether this rank was asked to stop.
    """

    def __init__(
        self,
        step: int,
        lr: float,
        crops: Sequence[Crops],
        losses: Sequence[Tensor],
        gradient_norm: Tensor,
        *,
        stop: bool,
    ) -> None:
        self.step, self.lr, self.crops, self.losses = step, lr, crops, losses
        vote = torch.full_like(gradient_norm, float(stop))
        dist.all_reduce(vote, op=dist.ReduceOp.MAX)
        values_3 = torch.stack([torch.stack(list(losses)).mean(), gradient_norm, vote])
        # From a GPU this copy goes to page-locked memory, and nobody waits for it before the event.
        self._values_3 = values_3.to("cpu", non_blocking=True)
        self._copied: torch.cuda.Event | None = None
        if values_3.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def outcome(self) -> Outcome:
        """What the step has come to, when the device has computed it."""
        if self._copied:
            self._copied.synchronize()
        loss, gradient_norm, stop = self._values_3.tolist()
        return Outcome(loss, gradient_norm, bool(stop))
