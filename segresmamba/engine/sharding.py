"""Weights and optimizer state in a form that depends on no ZeRO stage and no number of ranks.

A parameter of N elements is stored as three rows of N: its weight, and AdamW's two moments. Each
rank holds a piece of these rows, a sequence of elements:

    stage 0        all N elements; each rank saves an equal part of them
    stages 1 and 2 ZeRO joins all parameters and cuts them into one part for each rank; the piece
                   lies in the rank's part, and may be empty
    stage 3        an equal part of every parameter, the last one padded

A frozen parameter is stored in the same way, with moments of zero. Stages 0 to 2 have it whole on
each rank, which saves an equal part.

The pieces of all ranks make up the parameter, wherever it was cut. So a run can go on at another
stage or on other ranks, and each rank saves what it holds, without gathering or conversion.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segresmamba.task.ranks import Ranks

ROWS = 3
MOMENTS = ("exp_avg", "exp_avg_sq")

Piece = tuple[int, Tensor]
"""Index of the first element in the flat parameter, and the rows (3, n), float32."""


class ShardedState:
    """This rank's pieces of the parameters and of AdamW's state.

    Args:
        network: The network inside the engine.
        engine: DeepSpeed's engine, with AdamW and fp32 parameters.
        stage: The engine's ZeRO stage.
        ranks: This process.
    """

    def __init__(self, network: nn.Module, engine: Any, stage: int, ranks: Ranks) -> None:
        self._parameters: dict[str, Any] = dict(network.named_parameters())
        self._zero = engine.optimizer
        self._adamw = engine.optimizer.optimizer if stage else engine.optimizer
        self._stage, self._ranks = stage, ranks
        self._host: dict[str, Tensor] = {}
        # A new thread is on the first GPU. When it left the stream of another GPU, it would make a
        # context there, which takes half a GB from the rank of that GPU.
        on_gpu = partial(torch.cuda.set_device, ranks.device)
        self._thread = ThreadPoolExecutor(
            1, "copy of the state", on_gpu if ranks.device.type == "cuda" else None
        )
        self._copy: Future[dict[str, Piece]] | None = None

    def copied(self) -> Future[dict[str, Piece]]:
        """Begin to copy this rank's piece of each parameter to the CPU, beside the training.

        The next step's forward and backward passes only read what is copied. Before the weights
        change, call `wait_for_copy`. The next copy overwrites this one. Its memory is pinned where
        there is a GPU, which then copies several times faster.
        """
        if not any(self._adamw.state.values()):  # every step so far was skipped
            self._make_moments(0)
        is_cuda = self._ranks.device.type == "cuda"
        found, rows_of = dict[str, Piece](), dict[str, list[Tensor]]()
        for name, parameter in self._parameters.items():
            start, rows = self._held(parameter)
            if self._stage == 0 or (self._stage < 3 and not parameter.requires_grad):
                size = -(-len(rows[0]) // self._ranks.world_size)
                start = min(self._ranks.rank * size, len(rows[0]))
                rows = [row[start : start + size] for row in rows]
            if rows:
                if name not in self._host:
                    self._host[name] = torch.empty(ROWS, len(rows[0]), pin_memory=is_cuda)
                found[name], rows_of[name] = (start, self._host[name]), rows
        stream = torch.cuda.Stream() if is_cuda else None  # type: ignore[no-untyped-call]
        if stream:
            stream.wait_stream(torch.cuda.current_stream())  # the last step has written them

        def copy() -> dict[str, Piece]:
            with torch.cuda.stream(stream) if stream else nullcontext():
                for name, rows in rows_of.items():
                    for kept, row in zip(self._host[name], rows, strict=True):
                        kept.copy_(row, non_blocking=True)
            if stream:
                stream.synchronize()
            return found

        self._copy = self._thread.submit(copy)
        return self._copy

    def wait_for_copy(self) -> None:
        """Return when the weights may change."""
        if self._copy is not None:
            self._copy.result()
            self._copy = None

    def restore(self, wholes: Iterable[tuple[str, Tensor]], step: int) -> None:
        """Copy this rank's piece of each parameter into the engine (collective).

        Args:
            wholes: Names and all rows (3, N) of all parameters, in the same order on every rank.
            step: Optimizer steps that were made.
        """
        self._make_moments(step)
        for name, whole_3N in wholes:
            parameter = self._parameters[name]
            start, rows = self._held(parameter)
            for row, whole in zip(rows, whole_3N, strict=bool(rows)):
                row.copy_(whole[start : start + len(row)])
            # A forward pass reads other tensors than those that AdamW updates.
            if self._stage in {1, 2}:
                parameter.data.copy_(whole_3N[0].view_as(parameter))
            elif self._stage == 3:
                parameter.ds_tensor.data[: len(rows[0])].copy_(rows[0])
        if self._stage == 3:
            self._zero.checkpoint_event_epilogue()  # small weights are kept whole on every rank

    def _make_moments(self, step: int) -> None:
        """Make AdamW's state, which it makes itself at its first step, too late for us."""
        flat_groups: list[Tensor] = (
            self._zero.fp32_partitioned_groups_flat
            if self._stage == 3
            else [tensor for group in self._adamw.param_groups for tensor in group["params"]]
        )
        for tensor in flat_groups:
            moments = {key: torch.zeros_like(tensor, requires_grad=False) for key in MOMENTS}
            # Where the fused AdamW wants it: beside the weights.
            count = torch.full((), float(step), device=tensor.device)
            self._adamw.state[tensor] = {"step": count, **moments}

    def _held(self, parameter: Any) -> tuple[int, list[Tensor]]:
        """Where this rank's piece begins, and its rows: views of the engine's own tensors."""
        if not parameter.requires_grad:
            weight = (parameter.ds_tensor if self._stage == 3 else parameter).data.view(-1)
            return self._part(parameter, [weight, *[torch.zeros_like(weight)] * 2])
        if self._stage == 0:
            # AdamW has no moments of a weight that no gradient has reached, as that of an output of
            # deep supervision that does not count.
            state = self._adamw.state[parameter] or dict.fromkeys(
                MOMENTS, torch.zeros_like(parameter.data)
            )
            return 0, [row.view(-1) for row in (parameter.data, *map(state.get, MOMENTS))]
        if self._stage < 3:
            held = parameter._hp_mapping
            if held is None:
                return 0, []
            # `held.optim_fragment` would be simpler, but with several parameter groups DeepSpeed
            # 0.19.8 links the moments after the first group's step, when the others have none yet.
            flat = self._zero.single_partition_of_fp32_groups[held.param_group_index]
            first, size = held.hp_fragment_address.start, held.hp_fragment_address.numel
            rows = [flat.data, *map(self._adamw.state[flat].get, MOMENTS)]
            start: int = held.lp_fragment_address.start
            return start, [row[first : first + size] for row in rows]
        rows = [self._zero.get_local_fp32_param(parameter, key) for key in (None, *MOMENTS)]
        return self._part(parameter, rows)

    def _part(self, parameter: Any, rows: list[Tensor]) -> tuple[int, list[Tensor]]:
        """Whole rows, or under stage 3 this rank's part of them without its padding."""
        if self._stage < 3:
            return 0, rows
        start = min(self._ranks.rank * len(rows[0]), parameter.ds_numel)
        return start, [row.detach()[: parameter.ds_numel - start] for row in rows]
