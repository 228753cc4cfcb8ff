"""Memory of weights, gradients and optimizer states on one rank under each ZeRO stage.

The formulas were fitted to what DeepSpeed 0.19.8 allocates on a CPU for networks of 32 and 128 MiB
on one and two ranks, with torch's AdamW in fp32 and the bucket of `engine.zero`; all 16 runs agree.
P is the weights' bytes, w the ranks, K the bucket for reductions.
"""

from __future__ import annotations

from dataclasses import dataclass

BUCKET_BYTES = 4 * (1 << 25)


@dataclass(frozen=True)
class States:
    """The largest amounts in two parts of a training step, in bytes."""

    in_backward: int
    """While activations are there too."""
    in_step: int
    """While the optimizer steps; activations are gone."""


def states(stage: int, weights_bytes: int, world_size: int) -> States:
    """What a rank holds besides activations.

    Args:
        stage: Of ZeRO.
        weights_bytes: P, of all weights in fp32.
        world_size: w.
    """
    p, share, k = weights_bytes, weights_bytes / world_size, BUCKET_BYTES
    if stage == 0:  # weights, gradients, two moments; the step needs one temporary
        return States(int(4 * p), int(5 * p))
    if stage in (1, 2):
        return States(int(3 * p + 3 * share + k), int(2 * p + 7 * share))
    return States(int(2 * p + k + 5 * share), int(k + p + 7 * share))
