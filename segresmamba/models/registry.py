"""Builds networks by name, with the defaults of `segresmamba.config.networks`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, get_args

import torch
from torch import nn

from segresmamba.config.networks import NETWORKS, SegResMambaVariant
from segresmamba.models.arguments import check_counts
from segresmamba.models.padding import Padded
from segresmamba.models.plugins import plugin
from segresmamba.models.segmamba import SegMamba
from segresmamba.models.segresmamba import SegResMamba
from segresmamba.models.tom import TriOrientedMamba
from segresmamba.ops import resolve_backend

# Builders take in_channels, out_channels and the settings of their section of the configuration.
# The variants of SegResMamba are one class: their sections differ in their defaults.
_BUILDERS: dict[str, Callable[..., SegResMamba | SegMamba | Padded]] = {
    **{variant().name: SegResMamba for variant in get_args(SegResMambaVariant)},
    "segmamba": SegMamba,
    "plugin": plugin,
}
_OF_NNUNET = {"nnunet", "resenc_unet", "umamba_bot"}
# The only network whose weights depend on the size of its input: its position embedding has an
# entry for each token. The default is the paper's patch.
_FIXED_SIZE, _DEFAULT_PATCH = "unetr", (128, 128, 128)


def build(
    name: str,
    *,
    in_channels: int,
    out_channels: int,
    patch: Sequence[int] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a network.

    Args:
        name: Name of the network; the error for an unknown name lists all of them.
        in_channels: Channels of the image.
        out_channels: Number of classes, background included, or of regions.
        patch: Size (D, H, W) of the crops to train on, if the network is to be trained. A patch
            that is too small is refused. unetr is made for this size, by default 128 x 128 x 128.
        **kwargs: The network's own settings, see its section in `segresmamba.config.networks`.

    Returns:
        A module that maps x (B, in_channels, D, H, W) of any size to logits
        (B, out_channels, D, H, W); with deep supervision, in training mode, to a list of them, full
        resolution first.

    Raises:
        ValueError: If there is no network of that name.
        ConfigError: If a network from elsewhere cannot be imported or built.
        ArgumentError: If the settings do not fit together or the patch is too small.
        BackendMissingError: If the network's library is not installed.
    """
    if name not in NETWORKS and name not in _BUILDERS:
        raise ValueError(f"unknown network {name!r}; choose one of {', '.join(sorted(NETWORKS))}")
    # For the networks of libraries; those written here check it themselves as well.
    check_counts(1, in_channels=in_channels, out_channels=out_channels)
    builder = _BUILDERS.get(name)
    if builder is None:
        # MONAI takes two seconds to import, which a training of another network would pay.
        module = "nnunet" if name in _OF_NNUNET else "rivals"
        builder = getattr(import_module(f"segresmamba.models.{module}"), name)
    if name == _FIXED_SIZE:
        builder = partial(builder, patch=patch or _DEFAULT_PATCH)
    defaults = NETWORKS[name]().model_dump(exclude={"name"}) if name in NETWORKS else {}
    network = builder(in_channels=in_channels, out_channels=out_channels, **(defaults | kwargs))
    if patch is not None:
        network.check_patch(patch)
    return network


def scan_backend(network: nn.Module, device: torch.device) -> str:
    """The scan backend that a network uses on a device; "none" if it has no scans."""
    # All Mamba layers of a network have the same backend: the first one tells.
    for module in network.modules():
        if isinstance(module, TriOrientedMamba):
            return resolve_backend(module.backend, device)
    return "none"
