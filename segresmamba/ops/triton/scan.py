"""Launches the scan kernels: per-chunk states, a scan over chunks, then outputs or gradients.

The sequence is cut into chunks that are computed at the same time, so that a batch of one volume
fills a GPU. The forward pass and the first part of the backward pass walk along a piece of a chunk
with a lane for each channel. Gradients scan a whole chunk, its tokens spread over the lanes of a
warp. They are summed over the channels that share B and C with atomic additions, so the last bits
of the gradients of B and C differ from run to run.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from segresmamba.ops.kernels import ScanOperands
from segresmamba.ops.orders import OrderMap
from segresmamba.ops.triton.gradients import chunk_gradients
from segresmamba.ops.triton.outputs import chunk_outputs
from segresmamba.ops.triton.states import chunk_ends, pass_states

# Most tokens and channels per program of the gradients. A program is one warp, so it never waits
# for another; with four warps there were 26 barriers for each state (docs/performance.md, "GPU").
CHUNK, ROWS = 128, 4
# Channels per walking program, one for each lane of a warp, and tokens that it reads at once.
LANES, STEP = 32, 8
# Walking programs that fill a GPU: chunks are cut into pieces until there are as many.
WALKS = 4096
# Sequences of chunk states per program, and chunks that it scans at once.
PASS_ROWS, PASS_BLOCK = 4, 256

_IN_A_ROW = OrderMap(slices=1, reverse=False)


@dataclass(frozen=True)
class Scan:
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
        return tile_size(self.u_BDL.shape[2], CHUNK)

    @property
    def chunks(self) -> int:
        """Chunks of the sequence."""
        return cdiv(self.u_BDL.shape[2], self.chunk)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Programs of the gradients: chunks, blocks of channels, batch items."""
        return self._grid(ROWS)

    @property
    def walk_grid(self) -> tuple[int, int, int]:
        """Programs that walk: pieces, blocks of channels, batch items."""
        chunks, blocks, batch = self._grid(LANES)
        return chunks * self.pieces, blocks, batch

    def _grid(self, block: int) -> tuple[int, int, int]:
        batch, channels, _ = self.u_BDL.shape
        groups = self.B_BGNL.shape[1]
        return self.chunks, groups * cdiv(channels // groups, block), batch

    @property
    def pieces(self) -> int:
        """Pieces of a chunk that are walked at the same time."""
        wanted = cdiv(WALKS, max(1, math.prod(self._grid(LANES))))
        return min(self.chunk // STEP, _power_of_two(wanted))

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """length, channels, groups, states, slices: sizes that every kernel needs."""
        _, channels, length = self.u_BDL.shape
        groups, states = self.B_BGNL.shape[1:3]
        return length, channels, groups, states, self.order.slices

    @property
    def walk_sizes(self) -> dict[str, int]:
        """Compile-time sizes of a walk."""
        return {
            "LANES": LANES,
            "STATES": _power_of_two(self.A_DN.shape[1]),
            "CHUNK": self.chunk // self.pieces,
            "STEP": STEP,
            "num_warps": 1,
        }

    @cached_property
    def B_rows(self) -> Tensor:
        """B (B, G, tokens, states) as walks read it."""
        return self._rows(self.B_BGNL)

    @cached_property
    def C_rows(self) -> Tensor:
        """C (B, G, tokens, states) as walks read it."""
        return self._rows(self.C_BGNL)

    def _rows(self, matrix_BGNL: Tensor) -> Tensor:
        """float32, states in a row, padded to whole vectors and whole chunks; or constant."""
        batch, groups, states, length = matrix_BGNL.shape
        tokens, vector = self.chunks * self.chunk, self.walk_sizes["STATES"]
        if matrix_BGNL.stride(3) == 0:  # the same for every token: one row is enough
            row = F.pad(matrix_BGNL[..., :1].mT.float(), (0, vector - states))
            return row.expand(-1, -1, tokens, -1)
        rows = matrix_BGNL.new_zeros((batch, groups, tokens, vector), dtype=torch.float32)
        rows[..., :length, :states] = matrix_BGNL.mT
        return rows

    def per_channel(self, pieces: int = 1) -> Tensor:
        """An empty tensor with a value for each channel and chunk, or for each piece."""
        shape = (*self.u_BDL.shape[:2], self.chunks * pieces)
        return self.u_BDL.new_empty(shape, dtype=torch.float32)

    def per_state(self, pieces: int = 1) -> Tensor:
        """An empty tensor with a value for each channel, state and chunk, or for each piece."""
        shape = (*self.u_BDL.shape[:2], self.A_DN.shape[1], self.chunks * pieces)
        return self.u_BDL.new_empty(shape, dtype=torch.float32)


def tile_size(length: int, most: int) -> int:
    """Tokens of a sequence that are computed together: a power of two from 16 to most."""
    # Short sequences get a smaller tile, so that few lanes work on tokens that do not exist.
    return min(most, max(16, _power_of_two(length)))


def cdiv(items: int, size: int) -> int:
    """Parts of at most this size."""
    return -(-items // size)


def on_device(tensor: Tensor) -> AbstractContextManager[None]:
    """Makes the tensor's GPU the current one; Triton launches on that, whatever it is given."""
    context: AbstractContextManager[None] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return context


def _power_of_two(count: int) -> int:
    """The smallest power of two that is not below count."""
    return 1 << (count - 1).bit_length()


def prepare(operands: ScanOperands, softplus: bool, order: OrderMap = _IN_A_ROW) -> Scan:
    """The operands with dense rows, and neutral values for what is absent."""
    u_BDL, delta_BDL, A_DN, B_BGNL, C_BGNL, D_D, _, bias_D = operands
    zeros_D = A_DN.new_zeros(A_DN.shape[0])
    return Scan(
        dense(u_BDL),
        dense(delta_BDL),
        A_DN.contiguous(),
        B_BGNL,
        C_BGNL,
        zeros_D if D_D is None else D_D.contiguous(),
        zeros_D if bias_D is None else bias_D.contiguous(),
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
    """State before each piece (B, D, N, pieces) and after the last (B, D, N)."""
    end, delta_sum = scan.per_state(scan.pieces), scan.per_channel(scan.pieces)
    with on_device(scan.u_BDL):
        chunk_ends[scan.walk_grid](
            scan.u_BDL, scan.delta_BDL, scan.u_BDL, scan.A_DN, scan.B_rows, scan.bias_D, end,
            delta_sum, *scan.sizes, *scan.u_BDL.stride(), *scan.delta_BDL.stride(),
            *scan.u_BDL.stride(), *scan.B_rows.stride()[:3], ADJOINT=False, GATED=False,
            SOFTPLUS=scan.softplus, REVERSE=False, **scan.walk_sizes,
        )  # fmt: skip
    return _pass(scan, end, delta_sum, torch.zeros_like(end[..., 0]), backwards=False)


def chunk_starts(scan: Scan, start: Tensor) -> Tensor:
    """State before each chunk, taken from those before each piece."""
    return start[..., :: scan.pieces].contiguous()


def carried_adjoints(scan: Scan, dy_BDL: Tensor, gate_BDL: Tensor | None, d_last: Tensor) -> Tensor:
    """The adjoint that each chunk receives from the chunk after it (B, D, N, chunks)."""
    end, delta_sum = scan.per_state(scan.pieces), scan.per_channel(scan.pieces)
    gate = dy_BDL if gate_BDL is None else gate_BDL
    with on_device(scan.u_BDL):
        chunk_ends[scan.walk_grid](
            dy_BDL, scan.delta_BDL, gate, scan.A_DN, scan.C_rows, scan.bias_D, end, delta_sum,
            *scan.sizes, *dy_BDL.stride(), *scan.delta_BDL.stride(), *gate.stride(),
            *scan.C_rows.stride()[:3], ADJOINT=True, GATED=gate_BDL is not None,
            SOFTPLUS=scan.softplus, REVERSE=scan.order.reverse, **scan.walk_sizes,
        )  # fmt: skip
    carried, _ = _pass(scan, end, delta_sum, d_last, backwards=True)
    return carried[..., scan.pieces - 1 :: scan.pieces].contiguous()


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
    """Write the outputs to y, first adding those of earlier scans, then multiplying by the gate.

    Without earlier outputs or a gate that part is left out. earlier_BDL may be y_BDL itself.
    """
    # A kernel wants a pointer for every argument: what it does not read is given another tensor's.
    gate = y_BDL if gate_BDL is None else gate_BDL
    earlier = y_BDL if earlier_BDL is None else earlier_BDL
    with on_device(y_BDL):
        chunk_outputs[scan.walk_grid](
            scan.u_BDL, scan.delta_BDL, scan.A_DN, scan.B_rows, scan.C_rows, scan.skip_D,
            scan.bias_D, start, gate, earlier, y_BDL, *scan.sizes, *scan.u_BDL.stride(),
            *scan.delta_BDL.stride(), *gate.stride(), *earlier.stride(), *y_BDL.stride(),
            *scan.B_rows.stride()[:3], *scan.C_rows.stride()[:3], ADD=earlier_BDL is not None,
            GATED=gate_BDL is not None, SOFTPLUS=scan.softplus, REVERSE=scan.order.reverse,
            **scan.walk_sizes,
        )  # fmt: skip


def gradients(
    scan: Scan, start: Tensor, d_last: Tensor, dy_BDL: Tensor, gate_BDL: Tensor | None,
    earlier_BDL: Tensor | None = None, add: bool = False, d_gate_BDL: Tensor | None = None,
) -> ScanOperands:  # fmt: skip
    """Gradients of one scan, those of A, B, C, D and the bias in float32.

    Args:
        scan: The scan.
        start: State before each chunk, dense.
        d_last: Gradient of the last state.
        dy_BDL: Gradient of the gated output, in storage order.
        gate_BDL: The gate z, or None for an output without gate.
        earlier_BDL: float32 sum of the outputs of the scans under the same gate; this scan's are
            added to it. None without a gate.
        add: Whether earlier_BDL already holds outputs.
        d_gate_BDL: Receives the gradient of the gate. Only the last scan under a gate can compute
            it, since it needs the sum of all outputs.

    Returns:
        The gradients; that of z is d_gate_BDL.
    """
    carried = carried_adjoints(scan, dy_BDL, gate_BDL, d_last)
    d_u, d_delta = (t.new_empty(t.shape) for t in (scan.u_BDL, scan.delta_BDL))
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
            ROWS=ROWS, CHUNK=scan.chunk, num_warps=1,
        )  # fmt: skip
    return ScanOperands(
        d_u, d_delta, d_A.sum((0, 3)), d_B, d_C, d_skip.sum((0, 2)), d_gate_BDL, d_bias.sum((0, 2))
    )


def checkpoint_shape(operands: ScanOperands) -> tuple[int, ...]:
    """(B, D, N, chunks)."""
    batch, channels, length = operands.u.shape
    return batch, channels, operands.A.shape[1], cdiv(length, tile_size(length, CHUNK))


def scan_forward(
    operands: ScanOperands, softplus: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `segresmamba.ops.kernels.Kernels`."""
    scan = prepare(operands, softplus)
    start, last = start_states(scan)
    y_BDL = scan.u_BDL.new_empty(scan.u_BDL.shape)
    outputs(scan, start, operands.z, y_BDL, None)
    return y_BDL, last, chunk_starts(scan, start) if keep else start.new_empty(0)


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
    gate = None if operands.z is None else dense(operands.z)
    d_gate = None if gate is None else gate.new_empty(gate.shape)
    found = gradients(
        scan, checkpoints, d_last_BDN.contiguous(), dense(dy_BDL), gate, d_gate_BDL=d_gate
    )
    return operands.gradients_from(found)
