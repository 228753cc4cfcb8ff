"""Operators of torch.library that leave torch._dynamo alone until something is compiled.

PyTorch keeps an operator's kernel apart from torch.compile by a wrapper that imports torch._dynamo
at its first call. That takes over a second of processor time at each start of a training or a
prediction, which mostly compile nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch._compile import _disable_dynamo
from torch._library.custom_ops import CustomOpDef

_Function = TypeVar("_Function", bound=Callable[..., Any])


def custom_op(
    name: str, schema: str | None = None
) -> Callable[[Callable[..., object]], CustomOpDef]:
    """As `torch.library.custom_op`, for an operator that changes none of its operands."""

    def define(kernel: Callable[..., object]) -> CustomOpDef:
        setattr(torch, "_disable_dynamo", _apart_once_compiled)  # noqa: B010
        try:
            return torch.library.custom_op(name, kernel, mutates_args=(), schema=schema)
        finally:
            setattr(torch, "_disable_dynamo", _disable_dynamo)  # noqa: B010

    return define


def _apart_once_compiled(function: _Function) -> _Function:
    apart = _disable_dynamo(function)

    @wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        # Nothing can be compiled before the first import.
        return (apart if "torch._dynamo" in sys.modules else function)(*arguments, **keywords)

    return call  # type: ignore[return-value]
