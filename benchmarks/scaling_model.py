"""A model of weak scaling: what each ZeRO stage sends, and how long that takes.

Psi is the size of the weights in bytes (gradients have the same type, see `engine.zero`), N the
number of ranks. In a ring each rank sends (N - 1) / N of the tensor for a reduce-scatter or an
all-gather, and twice that for an all-reduce. From this Rajbhandari et al. (arXiv 1910.02054,
section 7) get 2 Psi for stages 1 and 2 and 3 Psi for stage 3. DeepSpeed 0.19 as configured here
sends other amounts, as `scaling.py` counts. Stages 1 and 2 all-reduce the gradients (2 Psi) and
gather the weights (Psi). Stage 3 gathers the weights of a network below a billion parameters once,
not twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

STAGES = (0, 1, 2, 3)
GPUS_PER_NODE = 8
# Parts of a tensor that a rank sends in a ring, in units of (N - 1) / N. In a broadcast or a
# reduction to one rank, each rank passes the tensor on once.
_RING = {"all-reduce": 2, "reduce-scatter": 1, "all-gather": 1, "broadcast": 1, "reduce": 1}

# The same for a whole step by ZeRO stage, in Psi.
_STEP = {0: 2, 1: 3, 2: 3, 3: 2}
# World sizes at which stages 1 and 2 send gradients to their owners alone, without overlap; see
# `engine.zero`. A rank then sends as much as at stage 0.
_TO_OWNERS = range(3, 65)


class Cluster(NamedTuple):
    """Speed of the links, per GPU and direction."""

    node_gb_s: float
    network_gb_s: float
    latency_us: float


class Traffic(NamedTuple):
    """Collectives and sent bytes of one rank in one step."""

    calls: int
    sent_bytes: float

    @classmethod
    def from_collectives(
        cls, world_size: int, collectives: Iterable[tuple[str, int, int]]
    ) -> Traffic:
        """Add up rows of (kind, calls, payload bytes), taking each collective for a ring."""
        rows = list(collectives)
        share = (world_size - 1) / world_size
        return cls(
            sum(calls for _, calls, _ in rows),
            sum(_RING[kind] * share * payload_bytes for kind, _, payload_bytes in rows),
        )


def predicted_traffic(
    stage: int, world_size: int, weights_bytes: int, *, overlaps: bool = True
) -> float:
    """Bytes that a rank sends in a step; `overlaps` is train.overlap_comm."""
    if stage in (1, 2) and not overlaps and world_size in _TO_OWNERS:
        stage = 0
    return _STEP[stage] * weights_bytes * (world_size - 1) / world_size


def step_s(
    stage: int, gpus: int, compute_s: float, weights_bytes: int, calls: int, cluster: Cluster
) -> float:
    """Seconds of a step, with the same crops per GPU and no communication behind the backward pass.

    Args:
        stage: ZeRO stage.
        gpus: N, eight in a node.
        compute_s: Seconds of a step on one GPU.
        weights_bytes: Psi.
        calls: Collectives in a step.
        cluster: The links. The slowest one of a ring limits the whole ring.
    """
    bandwidth_gb_s = cluster.node_gb_s if gpus <= GPUS_PER_NODE else cluster.network_gb_s
    transfer_s = predicted_traffic(stage, gpus, weights_bytes) / (bandwidth_gb_s * 1e9)
    # The hops of a tree over the ranks, which NCCL uses for small messages. For large messages the
    # transfer counts, not the hops.
    hops_s = calls * cluster.latency_us * 1e-6 * (gpus - 1).bit_length()
    return compute_s + transfer_s + hops_s
