"""Launches the scan kernels: per-chunk states, a scan over chunks, then outputs or gradients.

A GPU fills up with chunks: the sequence is cut into pieces of CHUNK tokens that are computed at
the same time, so that a batch of one volume is enough. Gradients of B and C are summed over
channels with atomic additions; their last bits differ from run to run.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from segresmamba.ops.kernels import ScanOperands
from segresmamba.ops.orders import OrderMap
from segresmamba.ops.triton.gradients import chunk_gradients
from segresmamba.ops.triton.outputs import chunk_outputs
from segresmamba.ops.triton.states import chunk_ends, pass_states

CHUNK = 256
"""Most tokens per program: eight for each thread of a warp."""
ROWS = 4
"""Channels per program, a warp each."""
PASS_ROWS, PASS_BLOCK = 4, 256
"""Sequences of chunk states per program, and chunks scanned at once."""

_IN_A_ROW = OrderMap(slices=1, reverse=False)


class Scan(NamedTuple):
    """One scan as the kernels read it: u, delta, B and C in its order, rows dense."""

    u_BDL: Tensor
    delta_BDL: Tensor
    A_DN: Tensor
    B_BGNL: Tensor
    C_BGNL: Tensor
    skip_D: Tensor
    bias_D: Tensor
    softplus: bool
    order: OrderMap

    @property
    def chunk(self) -> int:
        """Tokens per chunk."""
        return chunk_size(self.u_BDL.shape[2])

    @property
    def chunks(self) -> int:
        """Chunks of the sequence."""
        return cdiv(self.u_BDL.shape[2], self.chunk)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Programs: chunks, blocks of rows, batch items."""
        batch, channels, _ = self.u_BDL.shape
        groups = self.B_BGNL.shape[1]
        return self.chunks, groups * cdiv(channels // groups, ROWS), batch

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """length, channels, groups, states, slices: what every kernel is told."""
        _, channels, length = self.u_BDL.shape
        groups, states = self.B_BGNL.shape[1:3]
        return length, channels, groups, states, self.order.slices

    def per_channel(self) -> Tensor:
        """Room for a value of each channel and chunk."""
        shape = (*self.u_BDL.shape[:2], self.chunks)
        return self.u_BDL.new_empty(shape, dtype=torch.float32)

    def per_state(self) -> Tensor:
        """Room for a value of each channel, state and chunk."""
        shape = (*self.u_BDL.shape[:2], self.A_DN.shape[1], self.chunks)
        return self.u_BDL.new_empty(shape, dtype=torch.float32)


def chunk_size(length: int) -> int:
    """Tokens per chunk of a sequence."""
    return min(CHUNK, max(16, _power_of_two(length)))


def cdiv(items: int, size: int) -> int:
    """Parts of at most this size."""
    return -(-items // size)


def on_device(tensor: Tensor) -> AbstractContextManager[None]:
    """Makes the tensor's GPU the one that kernels are launched on."""
    context: AbstractContextManager[None] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return context


def _power_of_two(count: int) -> int:
    """The smallest power of two that is not below count."""
    return 1 << (count - 1).bit_length()


def prepare(operands: ScanOperands, softplus: bool, order: OrderMap = _IN_A_ROW) -> Scan:
    """The operands with dense rows, and neutral values for what is absent."""
    zeros_D = operands.A_DN.new_zeros(operands.A_DN.shape[0])
    return Scan(
        dense(operands.u_BDL),
        dense(operands.delta_BDL),
        operands.A_DN.contiguous(),
        operands.B_BGNL,
        operands.C_BGNL,
        zeros_D if operands.D_D is None else operands.D_D.contiguous(),
        zeros_D if operands.bias_D is None else operands.bias_D.contiguous(),
        softplus,
        order,
    )


def dense(x_BDL: Tensor) -> Tensor:
    """The tensor itself if only its batch items may lie apart, else a contiguous copy."""
    _, channels, length = x_BDL.shape
    tokens_in_a_row = x_BDL.stride(2) == 1 or length == 1
    rows_in_a_row = x_BDL.stride(1) == length or channels == 1
    return x_BDL if tokens_in_a_row and rows_in_a_row else x_BDL.contiguous()


def start_states(scan: Scan) -> tuple[Tensor, Tensor]:
    """State before each chunk (B, D, N, chunks) and after the last (B, D, N)."""
    end, delta_sum = scan.per_state(), scan.per_channel()
    with on_device(scan.u_BDL):
        chunk_ends[scan.grid](
            scan.u_BDL, scan.delta_BDL, scan.u_BDL, scan.A_DN, scan.B_BGNL, scan.bias_D, end,
            delta_sum, *scan.sizes, scan.u_BDL.stride(0), scan.delta_BDL.stride(0), 0,
            *scan.B_BGNL.stride(), ADJOINT=False, GATED=False, SOFTPLUS=scan.softplus,
            REVERSE=False, ROWS=ROWS, CHUNK=scan.chunk,
        )  # fmt: skip
    return _pass(scan, end, delta_sum, torch.zeros_like(end[..., 0]), backwards=False)


def carried_adjoints(scan: Scan, dy_BDL: Tensor, gate_BDL: Tensor | None, d_last: Tensor) -> Tensor:
    """What the adjoint of each chunk receives from the chunk after it (B, D, N, chunks)."""
    end, delta_sum = scan.per_state(), scan.per_channel()
    gate = dy_BDL if gate_BDL is None else gate_BDL
    with on_device(scan.u_BDL):
        chunk_ends[scan.grid](
            dy_BDL, scan.delta_BDL, gate, scan.A_DN, scan.C_BGNL, scan.bias_D, end, delta_sum,
            *scan.sizes, dy_BDL.stride(0), scan.delta_BDL.stride(0), gate.stride(0),
            *scan.C_BGNL.stride(), ADJOINT=True, GATED=gate_BDL is not None,
            SOFTPLUS=scan.softplus, REVERSE=scan.order.reverse, ROWS=ROWS, CHUNK=scan.chunk,
        )  # fmt: skip
    return _pass(scan, end, delta_sum, d_last, backwards=True)[0]


def _pass(
    scan: Scan, end: Tensor, delta_sum: Tensor, initial: Tensor, backwards: bool
) -> tuple[Tensor, Tensor]:
    start, last = torch.empty_like(end), torch.empty_like(initial)
    batch, channels, states, chunks = end.shape
    with on_device(end):
        pass_states[cdiv(channels * states, PASS_ROWS), batch](
            end, delta_sum, scan.A_DN, initial, start, last, channels, states, chunks,
            BACKWARDS=backwards, ROWS=PASS_ROWS,
            BLOCK=min(PASS_BLOCK, _power_of_two(chunks)),
        )  # fmt: skip
    return start, last


def outputs(
    scan: Scan, start: Tensor, gate_BDL: Tensor | None, y_BDL: Tensor, earlier_BDL: Tensor | None
) -> None:
    """Write the outputs to y: with those of earlier scans added, then gated, where there are any.

    earlier_BDL may be y_BDL itself. Both are dense.
    """
    gate = y_BDL if gate_BDL is None else gate_BDL
    earlier = y_BDL if earlier_BDL is None else earlier_BDL
    with on_device(y_BDL):
        chunk_outputs[scan.grid](
            scan.u_BDL, scan.delta_BDL, scan.A_DN, scan.B_BGNL, scan.C_BGNL, scan.skip_D,
            scan.bias_D, start, gate, earlier, y_BDL, *scan.sizes, scan.u_BDL.stride(0),
            scan.delta_BDL.stride(0), gate.stride(0), *scan.B_BGNL.stride(),
            *scan.C_BGNL.stride(), ADD=earlier_BDL is not None, GATED=gate_BDL is not None,
            SOFTPLUS=scan.softplus, REVERSE=scan.order.reverse, ROWS=ROWS, CHUNK=scan.chunk,
        )  # fmt: skip


def gradients(
    scan: Scan, start: Tensor, d_last: Tensor, dy_BDL: Tensor, gate_BDL: Tensor | None,
    earlier_BDL: Tensor | None = None, add: bool = False, d_gate_BDL: Tensor | None = None,
) -> ScanOperands:  # fmt: skip
    """Gradients of one scan, those of A, B, C, D and the bias in float32.

    Args:
        scan: The scan.
        start: State before each chunk.
        d_last: Gradient of the last state.
        dy_BDL: Gradient of the gated output, in storage order.
        gate_BDL: Gate z; without it the output is not gated.
        earlier_BDL: float32 sum of the outputs of scans under the same gate, to which this one's
            are added; not needed without a gate.
        add: The sum already holds something.
        d_gate_BDL: Where the gradient of the gate goes; only the last scan under a gate knows it.

    Returns:
        Gradients in the order of ScanOperands; z is d_gate_BDL.
    """
    carried = carried_adjoints(scan, dy_BDL, gate_BDL, d_last)
    d_u, d_delta = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in scan[:2])
    d_A = scan.per_state()
    d_skip, d_bias = scan.per_channel(), scan.per_channel()
    d_B, d_C = (torch.zeros(scan.B_BGNL.shape, device=d_A.device) for _ in range(2))
    gate = dy_BDL if gate_BDL is None else gate_BDL
    earlier = d_A if earlier_BDL is None else earlier_BDL
    with on_device(d_A):
        chunk_gradients[scan.grid](
            dy_BDL, scan.u_BDL, scan.delta_BDL, scan.A_DN, scan.B_BGNL, scan.C_BGNL, scan.skip_D,
            scan.bias_D, start, carried, gate, earlier, d_u, d_delta, d_A, d_B, d_C, d_skip,
            d_bias, d_u if d_gate_BDL is None else d_gate_BDL, *scan.sizes, dy_BDL.stride(0),
            scan.u_BDL.stride(0), scan.delta_BDL.stride(0), gate.stride(0),
            *scan.B_BGNL.stride(), *scan.C_BGNL.stride(), GATED=gate_BDL is not None, ADD=add,
            LAST=d_gate_BDL is not None, SOFTPLUS=scan.softplus, REVERSE=scan.order.reverse,
            ROWS=ROWS, CHUNK=scan.chunk,
        )  # fmt: skip
    return ScanOperands(
        d_u, d_delta, d_A.sum((0, 3)), d_B, d_C, d_skip.sum((0, 2)), d_gate_BDL, d_bias.sum((0, 2))
    )


def checkpoint_shape(operands: ScanOperands) -> tuple[int, ...]:
    """(B, D, N, chunks)."""
    batch, channels, length = operands.u_BDL.shape
    chunks = cdiv(length, chunk_size(length))
    return batch, channels, operands.A_DN.shape[1], chunks


def scan_forward(
    operands: ScanOperands, softplus: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `segresmamba.ops.kernels.Kernels`."""
    scan = prepare(operands, softplus)
    start, last = start_states(scan)
    y_BDL = scan.u_BDL.new_empty(scan.u_BDL.shape)
    gate = None if operands.z_BDL is None else dense(operands.z_BDL)
    outputs(scan, start, gate, y_BDL, None)
    return y_BDL, last, start if keep else start.new_empty(0)


def scan_backward(
    dy_BDL: Tensor,
    d_last_BDN: Tensor | None,
    operands: ScanOperands,
    checkpoints: Tensor,
    softplus: bool,
) -> list[Tensor]:
    """See `segresmamba.ops.kernels.Kernels`."""
    scan = prepare(operands, softplus)
    if d_last_BDN is None:
        d_last_BDN = torch.zeros_like(checkpoints[..., 0])
    gate, d_gate = None, None
    if operands.z_BDL is not None:
        gate = dense(operands.z_BDL)
        d_gate = gate.new_empty(gate.shape)
    found = gradients(
        scan, checkpoints, d_last_BDN.contiguous(), dense(dy_BDL), gate, d_gate_BDL=d_gate
    )
    return [
        gradient.to(operand.dtype)
        for operand, gradient in zip(operands, found, strict=True)
        if operand is not None and gradient is not None
    ]
