"""The MLP skip of SegMamba's encoder, which SegResMamba kept (Das et al., MIDL 2025, Figure 1)."""

from __future__ import annotations

from torch import nn


def mlp_skip(channels: int) -> nn.Module:
    """What a stage hands to the decoder: normed, and each voxel mixed over its channels."""
    return nn.Sequential(
        nn.InstanceNorm3d(channels),
        nn.Conv3d(channels, 2 * channels, 1),
        nn.GELU(),
        nn.Conv3d(2 * channels, channels, 1),
    )
