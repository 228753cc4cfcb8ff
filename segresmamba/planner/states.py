"""Memory of weights, gradients and optimizer states on one rank under each ZeRO stage.

The formulas were fitted to what DeepSpeed 0.19.8 allocates on a CPU for networks of 32 and 128 MiB
on one and two ranks, with torch's AdamW in fp32 and the bucket of `engine.zero`; all 16 runs agree.
P is the bytes of the trained weights, w the number of ranks, K the bytes of the bucket for
reductions. Frozen weights were found to take their own size and nothing more, on one rank.
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


def states(stage: int, trained_bytes: int, world_size: int, frozen_bytes: int = 0) -> States:
    """Memory of one rank without activations.

    Args:
        stage: ZeRO stage.
        trained_bytes: P, the size of the weights that are trained in fp32.
        world_size: w, the number of ranks.
        frozen_bytes: Size of the others. Stage 3 divides these too, but gathers them for use, so
            they count in full.
    """
    p, share, k, f = trained_bytes, trained_bytes / world_size, BUCKET_BYTES, frozen_bytes
    if stage == 0:  # weights, gradients, two moments; the step needs one temporary
        return States(int(f + 4 * p), int(f + 5 * p))
    if stage in (1, 2):
        return States(int(f + 3 * p + 3 * share + k), int(f + 2 * p + 7 * share))
    return States(int(f + 2 * p + k + 5 * share), int(f + k + p + 7 * share))
