"""Memory of weights, gradients and optimizer states on one rank under each ZeRO stage.

The formulas were fitted to what DeepSpeed 0.19.8 allocates on a CPU for networks of 32 and 128 MiB
on one and two ranks, with torch's AdamW in fp32 and the bucket of `engine.zero`; all 16 runs agree.
P is the bytes of the weights, w the number of ranks, K the bytes of the bucket for reductions.
"""

from __future__ import annotations

from dataclasses import dataclass

BUCKET_BYTES = 4 * (1 << 25)


@dataclass(frozen=True)
class States:
    """The peaks of two parts of a training step, in bytes."""

    in_backward: int
    """In the backward pass, in addition to the activations."""
    in_step: int
    """In the optimizer's step, when the activations are freed."""


def states(stage: int, weights_bytes: int, world_size: int) -> States:
    """Memory of one rank without activations.

    Args:
        stage: ZeRO stage.
        weights_bytes: P, the size of all weights in fp32.
        world_size: w, the number of ranks.
    """
    p, share, k = weights_bytes, weights_bytes / world_size, BUCKET_BYTES
    if stage == 0:  # weights, gradients, two moments; the step needs one temporary
        return States(int(4 * p), int(5 * p))
    if stage in (1, 2):
        return States(int(3 * p + 3 * share + k), int(2 * p + 7 * share))
    return States(int(2 * p + k + 5 * share), int(k + p + 7 * share))
