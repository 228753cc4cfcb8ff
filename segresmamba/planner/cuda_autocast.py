"""What CUDA's autocast computes in fp32 and the CPU's does not, for tensors on the CPU.

PyTorch keeps a list of operators for each device (torch.amp, "Autocast Op Reference"). On CUDA the
norms, softmax, powers, sums and resampling run in fp32, so that their inputs are kept in fp32 for
the backward pass: a group norm after each convolution more than doubles what SegResNet keeps. A
machine without a GPU can count that with fake CPU tensors under this mode.
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
"""Operators that autocast on CUDA and have no rule on the CPU, those of networks among them."""
_SPELLINGS = FP32_ON_CUDA_ALONE | {"__pow__", "__rpow__"}


class CudaAutocastLists(TorchFunctionMode):
    """While entered, autocast on the CPU treats `FP32_ON_CUDA_ALONE` as it does on CUDA."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function, in fp32 where CUDA's autocast would."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in _SPELLINGS or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            wide = {key: _in_fp32(value) for key, value in kwargs.items()}
            return func(*map(_in_fp32, args), **wide)


def backward(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """`torch.autograd.backward` of which checkpointed regions, computed again, see the mode too.

    PyTorch's own function hands itself to the mode, and a mode is off inside its handler.
    """
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward(
        tuple(outputs), tuple(gradients), False, False, (),
        allow_unreachable=True, accumulate_grad=True,
    )  # fmt: skip


def _in_fp32(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_half else value
