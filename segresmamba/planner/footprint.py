"""The cost of a network: parameters, operations, memory kept for the backward pass.

All figures follow from shapes and types, so fake tensors (`fake_footprint`) give the same as real
ones, at any size, without computing anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
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
    """Parameters that get a gradient in a backward pass."""
    dead_parameters: int
    """Parameters that take memory and get no gradient."""
    saved_bytes: int
    """Kept by the forward pass for the backward pass, see `SavedBytes`."""
    macs: int
    """Multiply-accumulate operations of one forward pass, half the count of PyTorch's flop counter:
    convolutions, matrix products and the scans, but not norms, activations or resampling."""


class SavedBytes:
    """Counts the bytes that autograd keeps for the backward pass while it is entered.

    A storage counts once and in full, however many views of it are kept. Checkpointed regions count
    with the inputs that they keep. Autocast's copies of weights count, since they are kept beside
    the weights.

    Args:
        excluded: Tensors that exist in any case: weights, and the input.
    """

    def __init__(self, excluded: Iterable[Tensor] = ()) -> None:
        self.total = 0
        self._seen = {storage_key(tensor): tensor for tensor in excluded}
        self._hooks = saved_tensors_hooks(self._count, lambda tensor: tensor)

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        self._seen.clear()

    def _count(self, tensor: Tensor) -> Tensor:
        key = storage_key(tensor)
        if key not in self._seen:
            # The storage has to stay alive, or another one could get its address and be missed. A
            # detached tensor keeps it without the graph.
            self._seen[key] = tensor.detach()
            self.total += tensor.untyped_storage().nbytes()
        return tensor


def footprint(network: nn.Module, x_BCDHW: Tensor, precision: str) -> Footprint:
    """Measure a network in training mode, in one forward and one backward pass.

    Args:
        network: The network, on the device of the input. Its gradients are deleted.
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
    """Measure a network at an input size without computing or allocating anything.

    Args:
        network: The network, on any device; **it becomes fake** and cannot compute any more.
        shape_BCDHW: Shape of the input, which is float32.
        precision: Autocast type: fp32, bf16 or fp16.
        device_type: The device whose autocast list applies, see `cuda_autocast`. The fake tensors
            are CPU tensors in both cases, so no GPU is needed.
    """
    mode = FakeTensorMode()
    make_fake(network, mode)
    lists = CudaAutocastLists() if device_type == "cuda" else nullcontext()
    with mode, lists:
        return footprint(network, torch.empty(tuple(shape_BCDHW)), precision)


def make_fake(network: nn.Module, mode: FakeTensorMode) -> None:
    """Replace all parameters and buffers by fake CPU tensors; shared ones stay shared.

    A network cannot be built with fake tensors from the start: some constructors read a tensor's
    value, such as that of MONAI's SwinUNETR.
    """
    fakes: dict[Tensor, Tensor] = {}
    for module in network.modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            if tensor not in fakes:
                with mode:
                    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
                is_parameter = isinstance(tensor, nn.Parameter)
                fakes[tensor] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
            setattr(module, name, fakes[tensor])


def storage_key(tensor: Tensor) -> int:
    """Identify a living storage. The address of the data would not do: fake storages have none."""
    return int(tensor.untyped_storage()._cdata)
