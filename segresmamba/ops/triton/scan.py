"""Launches the scan kernels: per-chunk states, a scan over chunks, then outputs or gradients.

The sequence is cut into chunks that are computed at the same time, so that a batch of one volume
fills a GPU. The forward pass and the first part of the backward pass walk along a piece of a chunk
with a lane for each channel. Gradients scan a whole chunk, its tokens spread over the lanes of a
warp. They are summed over the channels that share B and C with atomic additions, so the last bits
of the gradients of B and C differ from run to run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segresmamba.ops import chunking
from segresmamba.ops.chunking import cdiv
from segresmamba.ops.kernels import ScanOperands
from segresmamba.ops.orders import OrderMap
from segresmamba.ops.triton.gradients import chunk_gradients
from segresmamba.ops.triton.launch import launch
from segresmamba.ops.triton.outputs import chunk_outputs
from segresmamba.ops.triton.states import chunk_ends, pass_states

# Channels per program of the gradients. A program is one warp, so it never waits for another; with
# four warps there were 26 barriers for each state (docs/performance.md, "GPU").
ROWS = 4
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
    def chunks(self) -> int:
        """Chunks of the sequence."""
        return cdiv(self.u_BDL.shape[2], chunking.CHUNK)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Programs of the gradients: chunks, blocks of channels, batch items."""
        return self._grid(ROWS)

    @property
    def walk_grid(self) -> tuple[int, int, int]:
        """Programs that walk: pieces, blocks of channels, batch items."""
        chunks, blocks, batch = self._grid(chunking.LANES)
        return chunks * self.pieces, blocks, batch

    def _grid(self, block: int) -> tuple[int, int, int]:
        batch, channels, _ = self.u_BDL.shape
        groups = self.B_BGNL.shape[1]
        return self.chunks, groups * cdiv(channels // groups, block), batch

    @property
    def pieces(self) -> int:
        """Pieces of a chunk that are walked at the same time."""
        batch, channels, length = self.u_BDL.shape
        return chunking.pieces(batch, channels, self.B_BGNL.shape[1], length)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """length, channels, groups, states, slices: sizes that every kernel needs."""
        _, channels, length = self.u_BDL.shape
        groups, states = self.B_BGNL.shape[1:3]
        return length, channels, groups, states, kernel_slices(self.order)

    @property
    def steps(self) -> int:
        """Tiles of tokens that a walk reads one after the other."""
        return chunking.CHUNK // self.pieces // chunking.STEP

    @property
    def walk_sizes(self) -> dict[str, int]:
        """Compile-time sizes of a walk."""
        return {
            "LANES": chunking.LANES,
            "STATES": chunking.power_of_two(self.A_DN.shape[1]),
            "STEP": chunking.STEP,
            "num_warps": 1,
        }

    def rows(self, matrix_BGNL: Tensor) -> Tensor:
        """B or C (B, G, tokens, states) as walks read it.

        float32, states in a row, padded to whole vectors and whole chunks; or constant.
        """
        batch, groups, states, length = matrix_BGNL.shape
        tokens, vector = self.chunks * chunking.CHUNK, self.walk_sizes["STATES"]
        if matrix_BGNL.stride(3) == 0:  # the same for every token: one row is enough
            row = F.pad(matrix_BGNL[..., :1].mT.float(), (0, vector - states))
            return row.expand(-1, -1, tokens, -1)
        is_padded = (tokens, vector) != (length, states)
        new = matrix_BGNL.new_zeros if is_padded else matrix_BGNL.new_empty
        rows = new((batch, groups, tokens, vector), dtype=torch.float32)
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


def kernel_slices(order: OrderMap) -> int:
    """An order in one number, as kernels take it: its slices, or 0 to read from the end."""
    return 0 if order.reverse else order.slices


def prepare(operands: ScanOperands, softplus: bool, order: OrderMap = _IN_A_ROW) -> Scan:
    """The operands with dense rows, and neutral values for what is absent."""
    u_BDL, delta_BDL, A_DN, B_BGNL, C_BGNL, D_D, _, bias_D = operands
    return Scan(
        dense(u_BDL),
        dense(delta_BDL),
        A_DN.contiguous(),
        B_BGNL,
        C_BGNL,
        A_DN.new_zeros(len(A_DN)) if D_D is None else D_D.contiguous(),
        A_DN.new_zeros(len(A_DN)) if bias_D is None else bias_D.contiguous(),
        softplus,
        order,
    )


def dense(x_BDL: Tensor) -> Tensor:
    """The tensor itself if only its batch items may lie apart, else a contiguous copy."""
    return x_BDL if chunking.is_dense(x_BDL) else x_BDL.contiguous()


def no_state(x_BDL: Tensor, states: int) -> Tensor:
    """The state before the first token, or the adjoint after the last (B, D, N)."""
    return x_BDL.new_zeros((*x_BDL.shape[:2], states), dtype=torch.float32)


def start_states(scan: Scan, B_rows: Tensor, zeros_BDN: Tensor) -> tuple[Tensor, Tensor]:
    """State before each piece (B, D, N, pieces) and after the last (B, D, N); see `no_state`."""
    end, delta_sum = scan.per_state(scan.pieces), scan.per_channel(scan.pieces)
    launch(
        chunk_ends, scan.walk_grid, end,
        scan.u_BDL, scan.delta_BDL, scan.u_BDL, scan.A_DN, B_rows, scan.bias_D, end,
        delta_sum, *scan.sizes, scan.steps, *scan.u_BDL.stride(), *scan.delta_BDL.stride(),
        *scan.u_BDL.stride(), *B_rows.stride()[:3], ADJOINT=False, GATED=False,
        SOFTPLUS=scan.softplus, IN_A_ROW=True, **scan.walk_sizes,
    )  # fmt: skip
    return end, _pass(scan, end, delta_sum, zeros_BDN, backwards=False)


def chunk_starts(scan: Scan, start: Tensor) -> Tensor:
    """State before each chunk, taken from those before each piece."""
    return start[..., :: scan.pieces].contiguous()


def carried_adjoints(
    scan: Scan, C_rows: Tensor, dy_BDL: Tensor, gate_BDL: Tensor | None, d_last: Tensor
) -> Tensor:
    """The adjoint that each chunk receives from the chunk after it (B, D, N, chunks)."""
    end, delta_sum = scan.per_state(scan.pieces), scan.per_channel(scan.pieces)
    gate = dy_BDL if gate_BDL is None else gate_BDL
    launch(
        chunk_ends, scan.walk_grid, end,
        dy_BDL, scan.delta_BDL, gate, scan.A_DN, C_rows, scan.bias_D, end, delta_sum,
        *scan.sizes, scan.steps, *dy_BDL.stride(), *scan.delta_BDL.stride(), *gate.stride(),
        *C_rows.stride()[:3], ADJOINT=True, GATED=gate_BDL is not None,
        SOFTPLUS=scan.softplus, IN_A_ROW=scan.order == _IN_A_ROW, **scan.walk_sizes,
    )  # fmt: skip
    _pass(scan, end, delta_sum, d_last, backwards=True)
    return end[..., scan.pieces - 1 :: scan.pieces].contiguous()


def _pass(
    scan: Scan, states: Tensor, delta_sum: Tensor, initial: Tensor, backwards: bool
) -> Tensor:
    """Turn what each piece leaves into what it starts from; returns what the last one leaves."""
    last = torch.empty_like(initial)
    batch, channels, size, pieces = states.shape
    launch(
        pass_states, (cdiv(channels * size, PASS_ROWS), batch), states,
        states, delta_sum, scan.A_DN, initial, last, channels, size, pieces, int(backwards),
        ROWS=PASS_ROWS, BLOCK=PASS_BLOCK,
    )  # fmt: skip
    return last


def outputs(
    scan: Scan, start: Tensor, B_rows: Tensor, gate_BDL: Tensor | None, y_BDL: Tensor,
    earlier_BDL: Tensor | None,
) -> None:  # fmt: skip
    """Write the outputs to y, first adding those of earlier scans, then multiplying by the gate.

    Without earlier outputs or a gate that part is left out. earlier_BDL may be y_BDL itself.
    """
    # A kernel wants a pointer for every argument: what it does not read is given another tensor's.
    gate = y_BDL if gate_BDL is None else gate_BDL
    earlier = y_BDL if earlier_BDL is None else earlier_BDL
    C_rows = scan.rows(scan.C_BGNL)
    launch(
        chunk_outputs, scan.walk_grid, y_BDL,
        scan.u_BDL, scan.delta_BDL, scan.A_DN, B_rows, C_rows, scan.skip_D,
        scan.bias_D, start, gate, earlier, y_BDL, *scan.sizes, scan.steps,
        int(earlier_BDL is not None), *scan.u_BDL.stride(), *scan.delta_BDL.stride(),
        *gate.stride(), *earlier.stride(), *y_BDL.stride(), *B_rows.stride()[:3],
        *C_rows.stride()[:3], GATED=gate_BDL is not None, SOFTPLUS=scan.softplus,
        # Where the tokens of y do not lie in a row, it helps nothing: one kernel less to compile.
        IN_A_ROW=scan.order == _IN_A_ROW and y_BDL.stride(2) == 1, **scan.walk_sizes,
    )  # fmt: skip


def gradients(
    scan: Scan, start: Tensor, d_last: Tensor, dy_BDL: Tensor, gate_BDL: Tensor | None,
    sum_BDL: Tensor | None, *, add: bool, last: bool, d_u_BDL: Tensor, d_delta_BDL: Tensor,
) -> ScanOperands:  # fmt: skip
    """Gradients of one scan, those of A, B, C, D and the bias in float32.

    Args:
        scan: The scan.
        start: State before each chunk, dense.
        d_last: Gradient of the last state.
        dy_BDL: Gradient of the gated output, in storage order.
        gate_BDL: The gate z, or None for an output without gate.
        sum_BDL: Sum of the outputs of the scans under the same gate, to which this scan's are
            added. None without a gate.
        add: Whether sum_BDL already holds outputs.
        last: Whether this is the last scan under the gate, which turns sum_BDL into the gradient of
            the gate: that needs the sum of all outputs.
        d_u_BDL: Receives the gradient of u, dense; may be u itself.
        d_delta_BDL: Receives the gradient of delta, dense; may be delta itself.

    Returns:
        The gradients; that of z is sum_BDL.
    """
    carried = carried_adjoints(scan, scan.rows(scan.C_BGNL), dy_BDL, gate_BDL, d_last)
    next_ = scan.delta_BDL[..., :: chunking.CHUNK].contiguous()
    d_A = scan.per_state()
    d_skip, d_bias = scan.per_channel(), scan.per_channel()
    d_B, d_C = (torch.zeros(scan.B_BGNL.shape, device=d_A.device) for _ in range(2))
    gate = dy_BDL if gate_BDL is None else gate_BDL
    launch(
        chunk_gradients, scan.grid, d_A,
        dy_BDL, scan.u_BDL, scan.delta_BDL, next_, scan.A_DN, scan.B_BGNL, scan.C_BGNL,
        scan.skip_D, scan.bias_D, start, carried, gate, d_A if sum_BDL is None else sum_BDL,
        d_u_BDL, d_delta_BDL, d_A, d_B, d_C, d_skip, d_bias, *scan.sizes, int(add), int(last),
        dy_BDL.stride(0), scan.u_BDL.stride(0), scan.delta_BDL.stride(0), gate.stride(0),
        *scan.B_BGNL.stride(), *scan.C_BGNL.stride(), GATED=gate_BDL is not None,
        SOFTPLUS=scan.softplus, IN_A_ROW=scan.order == _IN_A_ROW, ROWS=ROWS,
        CHUNK=chunking.CHUNK, num_warps=1,
    )  # fmt: skip
    return ScanOperands(
        d_u_BDL, d_delta_BDL, d_A.sum((0, 3)), d_B, d_C, d_skip.sum((0, 2)), sum_BDL,
        d_bias.sum((0, 2)),
    )  # fmt: skip


def checkpoint_shape(operands: ScanOperands) -> tuple[int, ...]:
    """(B, D, N, chunks)."""
    batch, channels, length = operands.u.shape
    return batch, channels, operands.A.shape[1], cdiv(length, chunking.CHUNK)


def scan_forward(
    operands: ScanOperands, softplus: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `segresmamba.ops.kernels.Kernels`."""
    scan = prepare(operands, softplus)
    B_rows = scan.rows(scan.B_BGNL)
    start, last = start_states(scan, B_rows, no_state(scan.u_BDL, scan.A_DN.shape[1]))
    y_BDL = scan.u_BDL.new_empty(scan.u_BDL.shape)
    outputs(scan, start, B_rows, operands.z, y_BDL, None)
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
    d_u, d_delta = (t.new_empty(t.shape) for t in (scan.u_BDL, scan.delta_BDL))
    found = gradients(
        scan, checkpoints, d_last_BDN.contiguous(), dense(dy_BDL), gate, d_gate, add=False,
        last=True, d_u_BDL=d_u, d_delta_BDL=d_delta,
    )  # fmt: skip
    return operands.gradients_from(found)
