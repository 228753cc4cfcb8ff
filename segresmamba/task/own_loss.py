"""A loss of another package, by `package.module:Class`, tried on a small crop before training.

Importing the module runs its code. So a configuration that names one is trusted like a program.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from segresmamba.config.plugins import make
from segresmamba.errors import ConfigError

_CONTRACT = (
    "it is called with logits and masks, float32 (B, K, D, H, W), and returns a scalar whose "
    "gradient reaches the logits"
)


class OwnLoss:
    """The loss that a target names, with the arguments that it takes.

    Args:
        target: As in package.module:Class.
        kwargs: Keywords of the class.
        channels: Channels of the logits.
        padded: Whether voxels may count for nothing. The loss then has to take `mask`, bool
            (B, 1, D, H, W): nothing else could leave these voxels out.

    Raises:
        ConfigError: If it cannot be imported, made, or called so, or has weights of its own.
    """

    def __init__(
        self, target: str, kwargs: Mapping[str, Any], channels: int, *, padded: bool
    ) -> None:
        self._target = target
        self._loss: Callable[..., Any] = make(target, kwargs, "loss")
        if not callable(self._loss):
            raise self._refused(f"made {type(self._loss).__name__}, which cannot be called")
        if isinstance(self._loss, nn.Module) and any(True for _ in self._loss.parameters()):
            raise ConfigError(
                "the loss has weights of its own, which nothing would train",
                where="loss.target",
                got=target,
                remedy="register them as buffers, or give a loss without weights",
            )
        call = self._loss.forward if isinstance(self._loss, nn.Module) else self._loss
        if padded and "mask" not in inspect.signature(call).parameters:
            raise ConfigError(
                "the loss cannot leave out voxels that do not count",
                where="loss.target",
                got=f"{target}, for cases that are smaller than the patch or partly annotated",
                remedy="let it take the keyword mask, bool (B, 1, D, H, W), True where a voxel "
                "counts; or choose a data.patch within all cases",
            )
        logits_BKDHW = torch.zeros(2, channels, 8, 8, 8, requires_grad=True)
        masks_BKDHW = torch.zeros(2, channels, 8, 8, 8)
        masks_BKDHW[:, 0] = 1
        counted = torch.ones(2, 1, 8, 8, 8, dtype=torch.bool) if padded else None
        try:
            loss = self(logits_BKDHW, masks_BKDHW, counted)
            scalar = tuple(loss.shape) == ()
            (gradient,) = torch.autograd.grad(loss.sum(), logits_BKDHW, allow_unused=True)
        except Exception as error:  # the code may raise anything
            raise self._refused(f"{type(error).__name__}: {error}") from error
        if not scalar or gradient is None:
            made = "a constant" if scalar else f"a tensor {tuple(loss.shape)}"
            raise self._refused(f"returned {made}")

    def __call__(
        self, logits_BKDHW: Tensor, masks_BKDHW: Tensor, counted_B1DHW: Tensor | None
    ) -> Tensor:
        """The loss of a batch, a scalar."""
        if isinstance(self._loss, nn.Module):
            self._loss.to(logits_BKDHW.device)  # its buffers
        masked = {} if counted_B1DHW is None else {"mask": counted_B1DHW}
        loss: Tensor = self._loss(logits_BKDHW, masks_BKDHW, **masked)
        return loss

    def _refused(self, got: str) -> ConfigError:
        return ConfigError(
            "the target does not work as a loss",
            where="loss.target",
            got=shorten(f"{self._target} {got}", 300),
            remedy=_CONTRACT,
        )
