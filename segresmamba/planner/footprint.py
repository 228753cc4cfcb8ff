"""What a network costs before it trains: parameters, operations, memory kept for the backward pass.

All figures come from shapes and types alone, so fake tensors (`fake_footprint`) give what real ones
give, at any size and at no cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from segresmamba.planner.cuda_autocast import CudaAutocastLists, backward
from segresmamba.task.precision import Autocast


@dataclass(frozen=True)
class Footprint:
    """One network at one input size."""

    trained_parameters: int
    """Parameters that a backward pass gives a gradient."""
    dead_parameters: int
    """Parameters that take memory and get no gradient."""
    saved_bytes: int
    """Kept by the forward pass for the backward pass, see `SavedBytes`."""
    macs: int
    """Multiplications with an addition in one forward pass, half of what PyTorch's flop counter
    counts: convolutions, matrix products and the scans, not norms, activations or resampling."""


class SavedBytes:
    """Counts the bytes that autograd keeps for the backward pass while it is entered.

    A storage counts once, in full, however many views of it are kept. Checkpointed regions count
    with the inputs that they keep. The copies of weights that autocast makes count, since they are
    kept beside the weights.

    Args:
        excluded: Tensors that are there anyway: weights, and the input.
    """

    def __init__(self, excluded: Iterable[Tensor] = ()) -> None:
        self.total = 0
        self._seen = {_storage_key(tensor): tensor for tensor in excluded}
        self._hooks = saved_tensors_hooks(self._count, lambda tensor: tensor)

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        self._seen.clear()

    def _count(self, tensor: Tensor) -> Tensor:
        key = _storage_key(tensor)
        if key not in self._seen:
            # Detached, it holds the storage, whose address must not be used again, and no graph.
            self._seen[key] = tensor.detach()
            self.total += tensor.untyped_storage().nbytes()
        return tensor


def footprint(network: nn.Module, x_BCDHW: Tensor, precision: str) -> Footprint:
    """Measure a network in training mode, in one forward and one backward pass.

    Args:
        network: On the device of the input; its gradients are cleared.
        x_BCDHW: Any input of the wanted size, real or fake.
        precision: Autocast type: fp32, bf16 or fp16.
    """
    network.train()
    network.zero_grad(set_to_none=True)
    counter = FlopCounterMode(display=False)
    weights = [*network.parameters(), *network.buffers()]
    with SavedBytes([*weights, x_BCDHW]) as saved, counter:
        outputs = Autocast(network, precision)(x_BCDHW)
    levels = [outputs] if isinstance(outputs, Tensor) else outputs
    backward(levels, [torch.ones_like(logits) for logits in levels])
    trained = sum(p.numel() for p in network.parameters() if p.grad is not None)
    network.zero_grad(set_to_none=True)
    return Footprint(
        trained_parameters=trained,
        dead_parameters=sum(p.numel() for p in network.parameters()) - trained,
        saved_bytes=saved.total,
        macs=counter.get_total_flops() // 2,
    )


def fake_footprint(
    network: nn.Module,
    shape_BCDHW: Sequence[int],
    precision: str,
    device_type: Literal["cpu", "cuda"] = "cpu",
) -> Footprint:
    """Measure a network at an input size of which nothing is computed or allocated.

    Args:
        network: Anywhere; **it becomes fake** and cannot compute any more.
        shape_BCDHW: Of the input, float32.
        precision: Autocast type: fp32, bf16 or fp16.
        device_type: Whose autocast lists apply, see `engine.cuda_autocast`. The tensors claim to be
            on the CPU in both cases, so no GPU is needed.
    """
    mode = FakeTensorMode()
    make_fake(network, mode)
    lists = CudaAutocastLists() if device_type == "cuda" else nullcontext()
    with mode, lists:
        return footprint(network, torch.empty(tuple(shape_BCDHW)), precision)


def make_fake(network: nn.Module, mode: FakeTensorMode) -> None:
    """Put fake CPU tensors in the place of all parameters and buffers, shared ones still shared.

    Building a network fake from the start fails where a constructor reads a tensor's value, as that
    of MONAI's SwinUNETR does.
    """
    fakes: dict[Tensor, Tensor] = {}
    for module in network.modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            if tensor not in fakes:
                fakes[tensor] = _fake_of(tensor, mode)
            setattr(module, name, fakes[tensor])


def _fake_of(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    with mode:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, tensor.requires_grad)
    return fake


def _storage_key(tensor: Tensor) -> int:
    """Identity of a storage for as long as it lives; fake ones have no address of their data."""
    return int(tensor.untyped_storage()._cdata)
