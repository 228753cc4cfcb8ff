"""Half-precision autocast around a network whose parameters stay fp32.

DeepSpeed's own `torch_autocast` is not used. With fp16 and ZeRO stages 1 to 3, release 0.19.8 clips
the gradient before it removes the loss scale. It also never lowers the scale after an overflow, so
that it skips every later step (its `stage_1_and_2.py`, method `step`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from segresmamba.config import TrainConfig

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def tokens_dtype(precision: str) -> torch.dtype:
    """The type of what matrix products give under autocast."""
    return _DTYPES[precision] or torch.float32


def set_gpu_arithmetic(train: TrainConfig) -> None:
    """Choose how the GPU of this process multiplies and convolves; a CPU is not concerned."""
    # Crops have one size, so trying all algorithms of a convolution pays off after some steps.
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = train.tf32
    torch.set_float32_matmul_precision("high" if train.tf32 else "highest")


class Autocast(nn.Module):
    """Runs a network under autocast.

    Args:
        network: The network, with fp32 parameters.
        precision: fp32, bf16 or fp16.
    """

    def __init__(self, network: nn.Module, precision: str) -> None:
        super().__init__()
        self.network = network
        self._dtype = _DTYPES[precision]

    def forward(self, x_BCDHW: Tensor) -> Tensor | list[Tensor]:
        """The network's logits."""
        with torch.autocast(
            x_BCDHW.device.type, dtype=self._dtype, enabled=self._dtype is not None
        ):
            logits: Tensor | list[Tensor] = self.network(x_BCDHW)
        return logits


def spare_small_maps(network: nn.Module) -> None:
    """Let a CPU convolve maps that are smaller than the kernel in fp32, whatever autocast says.

    In bf16 the oneDNN of torch 2.13 leaves parts of such a kernel's gradient unwritten (seen with
    16 channels or more, AVX512-BF16): they hold whatever lay in that memory before. A patch of 64^3
    has such maps at the deepest level of the networks here. They are small, so fp32 costs little.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.forward = partial(_convolve, module, module.forward)  # type: ignore[method-assign]


def _convolve(
    convolution: nn.Conv3d | nn.ConvTranspose3d, forward: Callable[..., Tensor], x_BCDHW: Tensor
) -> Tensor:
    # The gradient of a kernel looks at the larger of both maps.
    scales = convolution.stride if isinstance(convolution, nn.ConvTranspose3d) else (1, 1, 1)
    sides = [side * scale for side, scale in zip(x_BCDHW.shape[2:], scales, strict=True)]
    if all(side >= k for side, k in zip(sides, convolution.kernel_size, strict=True)):
        return forward(x_BCDHW)
    with torch.autocast("cpu", enabled=False):
        return forward(x_BCDHW.float())


def poison(loss: Tensor) -> Tensor:
    """1 for a finite loss, otherwise nan: a factor that the device finds without a wait.

    The gradient of a loss times this factor is nan wherever the loss is not finite. So the
    reduction of the gradients tells all ranks of a loss that is broken on one of them.
    """
    return torch.where(loss.detach().isfinite(), 1.0, torch.nan)


class LossScaler:
    """Dynamic loss scale for fp16, which a hook removes from each gradient as autograd computes it.

    So accumulation, reduction over ranks, clipping and the optimizer see fp32 gradients of the true
    size at every ZeRO stage, and each rank has its own scale. Elements of a gradient that
    overflowed count as zero in that step, and the scale halves. After 2000 steps without overflow
    it doubles. A loss that is itself not finite is no overflow of a gradient: its gradient is nan.
    """

    _GROWTH_INTERVAL = 2000  # this and the first scale are the defaults of torch.amp.GradScaler

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        # All of it lies on the device, so that the host need not wait for what overflowed.
        self.scale = torch.full((), 2.0**16, device=device)
        self._clean_steps = torch.zeros((), device=device)
        self._overflowed = torch.zeros((), dtype=torch.bool, device=device)
        self._fill = torch.zeros((), device=device)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._unscaled)  # type: ignore[no-untyped-call]

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss times the scale, to call backward on."""
        self._fill = poison(loss) - 1
        return loss * self.scale

    def update(self, *, made: Tensor) -> None:
        """Adapt the scale, once per optimizer step.

        Args:
            made: bool (), whether the step was made. If it was skipped, the scale stays.
        """
        overflowed, clean = made & self._overflowed, made & ~self._overflowed
        steps = torch.where(overflowed, 0, self._clean_steps + clean)
        grows = steps == self._GROWTH_INTERVAL
        self.scale = self.scale * torch.where(overflowed, 0.5, torch.where(grows, 2.0, 1.0))
        self._clean_steps = torch.where(grows, 0, steps)
        self._overflowed.zero_()

    def state(self) -> tuple[float, int]:
        """Scale and number of steps without overflow, for `restore`."""
        return float(self.scale), int(self._clean_steps)

    def restore(self, state: tuple[float, int]) -> None:
        """Continue where a checkpoint left off."""
        scale, clean_steps = state
        self.scale.fill_(scale)
        self._clean_steps.fill_(clean_steps)

    def _unscaled(self, gradient: Tensor) -> Tensor:
        gradient = gradient / self.scale
        finite = torch.isfinite(gradient)
        self._overflowed |= ~finite.all()
        return torch.where(finite, gradient, self._fill.to(gradient.dtype))
