"""Memory of weights, gradients and optimizer states on one rank under each ZeRO stage.

The formulas were fitted to what DeepSpeed 0.19.8 allocates on a CPU for networks of 32 and 128 MiB
on one and two ranks, with torch's fused AdamW in fp32 and the bucket of `engine.zero`; all 16 runs
agree, with `train.overlap_comm`. The peak of a run is that of the two parts which takes more.
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


def states(
    stage: int,
    trained_bytes: int,
    world_size: int,
    frozen_bytes: int = 0,
    *,
    overlap_comm: bool = True,
) -> States:
    """Memory of one rank without activations.

    Args:
        stage: ZeRO stage.
        trained_bytes: P, the size of the weights that are trained in fp32.
        world_size: w, the number of ranks.
        frozen_bytes: Size of the others. Stage 3 divides these too, but gathers them for use, so
            they count in full.
        overlap_comm: Whether stages 1 and 2 reduce during the backward pass (`train.overlap_comm`).
    """
    p, share, k, f = trained_bytes, trained_bytes / world_size, BUCKET_BYTES, frozen_bytes
    if stage == 0:  # weights, gradients, two moments; several ranks reduce a copy of the gradients
        return States(int(f + 4 * p), int(f + (5 if world_size > 1 else 4) * p))
    in_backward = f + 3 * p + 3 * share + k
    if stage == 3:
        return States(int(in_backward), int(f + k + p + 5 * share))
    if overlap_comm and world_size > 1:  # one bucket is reduced while the next one is filled
        in_backward += k
    return States(int(in_backward), int(f + 2 * p + 5 * share))
