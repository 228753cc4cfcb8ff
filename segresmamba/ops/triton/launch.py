"""Starts kernels, and compiles them without starting them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_compiling = ContextVar("compiling", default=False)


def launch(
    kernel: Any, grid: tuple[int, ...], on: Tensor, *arguments: Any, **constants: Any
) -> None:
    """Run a kernel on the GPU where a tensor is.

    Tensors without data (device meta) have shapes alone: for them a kernel does nothing, so that
    the memory of an operator can be followed at any size. Within `compiling` it is compiled.
    """
    if not on.is_meta:
        # Triton launches on the current GPU, whatever tensors it is given.
        with torch.cuda.device_of(on):  # type: ignore[no-untyped-call]
            kernel[grid](*arguments, **constants)
    elif _compiling.get():
        kernel.warmup(*arguments, grid=grid, **constants)


@contextmanager
def compiling() -> Iterator[None]:
    """Within it, kernels that are launched on tensors without data are compiled.

    They are compiled for the GPU that Triton's active driver names.
    """
    token = _compiling.set(True)
    try:
        yield
    finally:
        _compiling.reset(token)
