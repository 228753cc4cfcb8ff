"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch
from monai.networks.nets import SegResNet
from torch import nn

from segresmamba.config.networks import SegResMambaVariant
from segresmamba.models.segresmamba import SegResMamba
from segresmamba.models.tom import TriOrientedMamba
from segresmamba.ops import resolve_backend

_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    **{
        variant().name: partial(SegResMamba, **variant().model_dump(exclude={"name"}))
        for variant in get_args(SegResMambaVariant)
    },
    "segresnet": SegResNet,
}


def build(name: str, *, in_channels: int, out_channels: int, **kwargs: Any) -> nn.Module:
    """Build a network.

    Args:
        name: One of the names in the error below.
        in_channels: Channels of the image.
        out_channels: Classes, background included, or regions.
        **kwargs: The network's own arguments, as in configs/model/*.yaml.

    Returns:
        A module that maps x (B, in_channels, D, H, W) to logits (B, out_channels, D, H, W).

    Raises:
        ValueError: If there is no network of that name.
    """
    if name not in _NETWORKS:
        raise ValueError(f"unknown network {name!r}; choose one of {', '.join(sorted(_NETWORKS))}")
    return _NETWORKS[name](
        spatial_dims=3, in_channels=in_channels, out_channels=out_channels, **kwargs
    )


def scan_backend(network: nn.Module, device: torch.device) -> str:
    """The scan implementation that a network runs on a device; "none" where it scans nothing."""
    for module in network.modules():
        if isinstance(module, TriOrientedMamba):
            return resolve_backend(module.backend, device)
    return "none"
