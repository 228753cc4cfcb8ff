"""Networks from other packages, by `package.module:Class`.

Importing the module runs its code. So a configuration that names one is trusted like a program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segresmamba.config.plugins import make
from segresmamba.errors import ConfigError
from segresmamba.models.arguments import ArgumentError
from segresmamba.models.padding import Padded


def plugin(
    in_channels: int, out_channels: int, *, target: str, kwargs: Mapping[str, Any], stride: int
) -> Padded:
    """Build the network that a target names. It refuses logits of a wrong shape when it is called.

    Args:
        in_channels: Channels of the image.
        out_channels: Number of classes, background included, or of regions.
        target: As in package.module:Class.
        kwargs: Further keywords of the class.
        stride: See `Padded`. Errors name it as model.stride, which a user has set.

    Raises:
        ConfigError: If it cannot be imported, or does not take these arguments.
    """
    keywords = {"in_channels": in_channels, "out_channels": out_channels, **kwargs}
    needed = "a network has to take in_channels and out_channels; "
    network = make(target, keywords, "model", needed)
    if not isinstance(network, nn.Module):
        raise ConfigError(
            "the target does not make a network",
            where="model.target",
            got=f"{target} made {type(network).__name__}",
            remedy="name a class derived from torch.nn.Module, or a function that returns one",
        )

    def check(module: nn.Module, inputs: tuple[Tensor, ...], outputs: Any) -> None:
        x_BCDHW, finest = inputs[0], outputs
        if isinstance(outputs, list | tuple) and outputs:
            finest = outputs[0]
        found = tuple(finest.shape) if isinstance(finest, Tensor) else type(finest).__name__
        expected = (len(x_BCDHW), out_channels, *x_BCDHW.shape[2:])
        if found == expected:
            if module.training and torch.is_grad_enabled() and not finest.requires_grad:
                raise ConfigError(
                    "no weight of the network can learn: its logits have no gradient",
                    where="model.target",
                    got=f"{target}: logits without requires_grad",
                    remedy="leave out detach(), no_grad() and NumPy on the way to the logits",
                )
            return
        raise ConfigError(
            "the network does not return logits of the input's size, one channel for each class",
            where="model.target",
            got=f"{target}: {found} for an input {tuple(x_BCDHW.shape)}",
            remedy=f"return {expected}, or a list of logits that begins with them; if the network "
            "takes only multiples of a number of voxels, give that number as model.stride",
        )

    # Before `Padded` crops the logits: it would make the right size of a wrong one.
    network.register_forward_hook(check)
    return _Plugin(network, stride, target)


class _Plugin(Padded):
    """A padded network whose errors name what the user has set: its target and its stride."""

    def __init__(self, network: nn.Module, stride: int, target: str) -> None:
        super().__init__(network, stride)
        self.target = target

    def forward(self, x_BCDHW: Tensor) -> Tensor | list[Tensor]:
        """As `Padded` does.

        Raises:
            ConfigError: If maps of different sizes meet in the network, or its logits are not as
                they have to be.
        """
        try:
            return super().forward(x_BCDHW)
        except RuntimeError as error:
            if "must match" not in str(error):
                raise
            size = tuple(self._padded(x_BCDHW.shape[2:]))
            raise ConfigError(
                "the network does not take an input of this size",
                where="model.stride",
                got=f"{self.target}: {size}, the multiples of model.stride={self.stride}: {error}",
                remedy="give the number of voxels that its sides have to be multiples of as "
                "model.stride; for a U-Net that is the product of its strides",
            ) from error

    def check_patch(self, size: Sequence[int]) -> None:
        """As `Padded` does.

        Raises:
            ArgumentError: If the deepest level would see the patch as one voxel and padding.
        """
        try:
            super().check_patch(size)
        except ArgumentError as error:
            rule = (
                f"{error.rule}. That is model.stride={self.stride}; "
                f"if {self.target} takes multiples of fewer voxels, give their number there"
            )
            raise ArgumentError(error.name, rule, error.got) from error
