"""The networks of MONAI.

Each function builds one with the arguments of its section in `segresmamba.config.networks`, and
wraps it so that it takes any input size and returns deep supervision as SegResMamba does. Modules
that a library builds and never uses are taken out: they would cost memory and optimizer state, and
would never get a gradient. nnU-Net's networks are in `models.nnunet`, which does without MONAI.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.mednext import create_mednext
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unet import UNet
from monai.networks.nets.unetr import UNETR
from torch import Tensor, nn

from segresmamba.models.arguments import ArgumentError, check_divisible, check_least_levels
from segresmamba.models.padding import Padded, padded_size

_NORM_GROUPS = 8  # MONAI's default in SegResNet
_UNETR_TOKEN = 16  # voxels along a side of a token
_SWIN_STRIDE = 32  # tokens of two voxels, merged four times
_MEDNEXT_STRIDE = 16  # four halvings


def segresnet(
    in_channels: int,
    out_channels: int,
    *,
    init_filters: int,
    blocks_down: Sequence[int],
    blocks_up: Sequence[int],
) -> Padded:
    """MONAI's SegResNet."""
    check_divisible("init_filters", init_filters, _NORM_GROUPS, "group norm")
    check_least_levels(2, blocks_down=blocks_down)
    if len(blocks_up) != len(blocks_down) - 1:
        rule = f"must be {len(blocks_down) - 1} numbers, one fewer than blocks_down"
        raise ArgumentError("blocks_up", rule, tuple(blocks_up))
    network = SegResNet(
        init_filters=init_filters,
        in_channels=in_channels,
        out_channels=out_channels,
        blocks_down=tuple(blocks_down),
        blocks_up=tuple(blocks_up),
    )
    return Padded(network, _stride(blocks_down))


def swinunetr(
    in_channels: int, out_channels: int, *, feature_size: int, use_checkpoint: bool
) -> Padded:
    """MONAI's SwinUNETR."""
    # MONAI would refuse it too, without the name of a setting.
    check_divisible("feature_size", feature_size, 12, "heads of the attention")
    network = SwinUNETR(
        in_channels, out_channels, feature_size=feature_size, use_checkpoint=use_checkpoint
    )
    return Padded(network, _SWIN_STRIDE)


def unetr(
    in_channels: int,
    out_channels: int,
    patch: Sequence[int],
    *,
    feature_size: int,
    hidden_size: int,
    mlp_dim: int,
    num_heads: int,
) -> Padded:
    """MONAI's UNETR, whose position embedding is made for the patch."""
    check_divisible("hidden_size", hidden_size, num_heads, "num_heads")
    # The weights are made for one size: every input is padded to it.
    size = padded_size(patch, _UNETR_TOKEN, _UNETR_TOKEN)
    network = UNETR(
        in_channels,
        out_channels,
        img_size=size,
        feature_size=feature_size,
        hidden_size=hidden_size,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
    )
    # MONAI builds a norm for cross-attention in every block, also where there is no such attention.
    for block in network.vit.blocks:
        block.norm_cross_attn = nn.Identity()
    return Padded(network, _UNETR_TOKEN, fixed_size=size)


def unet(
    in_channels: int, out_channels: int, *, channels: Sequence[int], num_res_units: int
) -> Padded:
    """MONAI's UNet, which halves the resolution at each level."""
    check_least_levels(2, channels=channels)
    strides = [2] * (len(channels) - 1)
    network = UNet(
        3, in_channels, out_channels, tuple(channels), strides, num_res_units=num_res_units
    )
    return Padded(network, _stride(channels))


def dynunet(
    in_channels: int,
    out_channels: int,
    *,
    filters: Sequence[int],
    res_block: bool,
    deep_supervision: bool,
) -> Padded:
    """MONAI's DynUNet, the U-Net of nnU-Net's first version."""
    check_least_levels(4 if deep_supervision else 3, filters=filters)
    strides = [1] + [2] * (len(filters) - 1)  # the first level keeps the resolution
    network = _DynUNet(
        3,
        in_channels,
        out_channels,
        kernel_size=[3] * len(filters),
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=tuple(filters),
        res_block=res_block,
        deep_supervision=deep_supervision,
        # As in nnU-Net: all levels of the decoder but the coarsest.
        deep_supr_num=max(1, len(filters) - 3),
    )
    return Padded(network, _stride(filters))


def mednext(
    in_channels: int, out_channels: int, *, variant: str, kernel_size: int, deep_supervision: bool
) -> Padded:
    """MONAI's MedNeXt in one of the sizes of its paper."""
    network = create_mednext(
        variant,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=kernel_size,
        deep_supervision=deep_supervision,
    )
    return Padded(network, _MEDNEXT_STRIDE)


class _DynUNet(DynUNet):  # type: ignore[misc]
    """Returns the levels of deep supervision at their own sizes.

    MONAI's forward enlarges them all to full resolution and stacks them, which takes more memory.
    """

    def forward(self, x_BCDHW: Tensor) -> Any:
        logits_BKDHW = self.output_block(self.skip_layers(x_BCDHW))
        return [logits_BKDHW, *self.heads] if self.deep_supervision else logits_BKDHW


def _stride(levels: Sequence[int]) -> int:
    """Side of a voxel of the last level in voxels of the input, where every level halves."""
    return 1 << len(levels) - 1
