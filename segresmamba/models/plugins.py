"""Networks from other packages, by `package.module:Class`.

Importing the module runs its code. So a configuration that names one is trusted like a program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from segresmamba.config.plugins import make
from segresmamba.errors import ConfigError
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
        stride: See `Padded`.

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

    def check(_: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor | Sequence[Tensor]) -> None:
        x_BCDHW, finest = inputs[0], outputs if isinstance(outputs, Tensor) else outputs[0]
        expected = (len(x_BCDHW), out_channels, *x_BCDHW.shape[2:])
        if tuple(finest.shape) == expected:
            return
        raise ConfigError(
            "the network does not return logits of the input's size, one channel for each class",
            where="model.target",
            got=f"{target}: {tuple(finest.shape)} for an input {tuple(x_BCDHW.shape)}",
            remedy=f"return {expected}, or a list of logits that begins with them; if the network "
            "takes only multiples of a number of voxels, give that number as model.stride",
        )

    # Before `Padded` crops the logits: it would make the right size of a wrong one.
    network.register_forward_hook(check)
    return Padded(network, stride)
