"""A mode in which autocast on the CPU computes in fp32 what autocast on CUDA computes in fp32.

PyTorch has one list of operators for each device (torch.amp, "Autocast Op Reference"). On CUDA,
norms, softmax, powers, sums and resampling run in fp32, so their inputs are kept in fp32 for the
backward pass: a group norm after each convolution more than doubles what SegResNet keeps. With this
mode a machine without a GPU can count that on fake CPU tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FP32_ON_CUDA_ALONE = frozenset(
    {
        "acos", "asin", "cosh", "cosine_similarity", "cumprod", "cumsum", "dist", "erfinv", "exp",
        "expm1", "group_norm", "layer_norm", "linalg_matrix_norm", "linalg_vector_norm", "log",
        "log10", "log1p", "log2", "log_softmax", "logsumexp", "native_layer_norm", "norm", "pow",
        "reciprocal", "renorm", "rsqrt", "sinh", "softmax", "softplus", "sum", "tan",
        "upsample_bilinear2d", "upsample_linear1d", "upsample_nearest1d", "upsample_nearest2d",
        "upsample_nearest3d", "upsample_trilinear3d",
    }
)  # fmt: skip
"""Operators that CUDA's autocast runs in fp32, and for which the CPU's has no rule."""
_SPELLINGS = FP32_ON_CUDA_ALONE | {"__pow__", "__rpow__"}


class CudaAutocastLists(TorchFunctionMode):
    """Inside this mode, autocast on the CPU runs `FP32_ON_CUDA_ALONE` in fp32, as on CUDA."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function, in fp32 if CUDA's autocast would do so."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in _SPELLINGS or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            wide = {key: _in_fp32(value) for key, value in kwargs.items()}
            return func(*map(_in_fp32, args), **wide)


def backward(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """`torch.autograd.backward`, with the mode on in checkpointed regions that are recomputed.

    PyTorch passes its own function to the mode's handler, and a mode is off inside its handler.
    """
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward(
        tuple(outputs), tuple(gradients), False, False, (),
        allow_unreachable=True, accumulate_grad=True,
    )  # fmt: skip


def _in_fp32(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_half else value
