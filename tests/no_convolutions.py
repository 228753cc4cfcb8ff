"""Convolutions that take no time, for tests that count memory or operations and read no values."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_CONVOLUTIONS = {torch.ops.aten.convolution, torch.ops.aten.convolution_backward}


class NoConvolutions(TorchDispatchMode):
    """Every convolution, and its backward pass, gives zeros of the right size.

    A CPU without instructions for bf16 takes about a second for a convolution of a tiny network.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket not in _CONVOLUTIONS:
            return func(*args, **(kwargs or {}))
        results = func(*tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), args))
        return tree_map_only(
            torch.Tensor, lambda tensor: torch.zeros_like(tensor, device="cpu"), results
        )
