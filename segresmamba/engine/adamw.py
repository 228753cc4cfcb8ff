"""PyTorch's AdamW as it is outside of torch.compile."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.optim import Adam, AdamW, Optimizer


class EagerAdamW(AdamW):
    """PyTorch's AdamW, without what keeps it apart from compiled code.

    PyTorch wraps these methods so that torch.compile leaves them alone. At their first call the
    wrappers import torch._dynamo, which takes a second of processor time at each start of each
    rank. Here only networks are compiled, never a step of the optimizer.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Change the weights by one step."""
        return inspect.unwrap(Adam.step)(self, closure)
