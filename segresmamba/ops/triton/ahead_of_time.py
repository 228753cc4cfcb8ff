"""Compiles the kernels of `tri_scan` before training needs them, with or without a GPU.

Layers differ in their lengths and channels, which the kernels take at run time. So one layer's
kernels serve all layers of a network, as long as lengths and channels are multiples of 16: Triton
compiles other numbers for themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from segresmamba.ops.kernels import TriOperands
from segresmamba.ops.triton.launch import compiling
from segresmamba.ops.triton.tri import tri_backward, tri_forward

_CHANNELS, _LENGTH, _SLICES = 32, 512, 16


def compile_kernels(
    dtype: torch.dtype, states: int, width: int, device: torch.device, capability: int | None = None
) -> None:
    """Compile the kernels of a forward and a backward pass into Triton's cache.

    Args:
        dtype: Type of the tokens.
        states: State size of the scans.
        width: Width of the convolutions.
        device: A GPU, on which the kernels also run once, so that the programs that start them are
            compiled as well. With device meta they are compiled alone, which needs no GPU.
        capability: For device meta: compute capability of the GPUs, such as 90 for 9.0.
    """
    operands = _operands(dtype, states, width, device)
    with _compiling_for(capability) if capability else nullcontext():
        y_BDL = tri_forward(operands, _SLICES)
        tri_backward(torch.zeros_like(y_BDL), operands, _SLICES)


def _operands(dtype: torch.dtype, states: int, width: int, device: torch.device) -> TriOperands:
    """Zeros as a layer passes them: x and z are halves of one product, the weights are float32."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(3, *shape, device=device)

    rank, channels = 2, _CHANNELS
    product_BEL = torch.zeros(1, 2 * channels, _LENGTH, dtype=dtype, device=device)
    x_BDL, z_BDL = product_BEL.chunk(2, dim=1)
    return TriOperands(
        x_BDL,
        z_BDL,
        zeros(channels, width),
        zeros(channels),
        zeros(rank + 2 * states, channels),
        zeros(channels, rank),
        zeros(channels),
        zeros(channels, states),
        zeros(channels),
    )


class _AbsentGpu:
    """What Triton asks its driver when it compiles and does not run a kernel."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        # Compiled kernels are kept by device: those for two capabilities must not be mixed up.
        return -self._capability

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def _compiling_for(capability: int) -> Iterator[None]:
    before = driver._active
    driver.set_active(_AbsentGpu(capability))
    try:
        with compiling():
            yield
    finally:
        driver._active = before
