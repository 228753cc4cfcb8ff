"""SegResMamba (Das et al., MIDL 2025, Figure 1): Conv-Mamba encoder, SegResNet decoder.

Shapes: B batch, C channels, D, H, W voxels. With four stages, stage i works at 1 / 2**(i+1) of the
input and the inside of its block at half of that, so inputs are padded to multiples of 32.

The released code builds its Mamba layer and never calls it, and carries an unused SegResNet
encoder; here every parameter takes part. Convolutions that feed an instance norm have no bias,
because the norm would cancel it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from monai.networks.blocks.segresnet_block import ResBlock
from torch import Tensor, nn

from segresmamba.models.tom import TriOrientedMamba

_NORM_GROUPS = 8
_DECODER_NORM = ("group", {"num_groups": _NORM_GROUPS})


class ConvMambaBlock(nn.Module):
    """Figure 1b: down by two, mix locally and globally, up by two, add, mix globally.

    Args:
        channels: C.
        inner_tom: The Mamba layer at half resolution, or identity.
        outer_tom: The Mamba layer after the residual, or identity.
    """

    def __init__(self, channels: int, inner_tom: nn.Module, outer_tom: nn.Module) -> None:
        super().__init__()
        conv = partial(nn.Conv3d, channels, channels, bias=False)
        self.branch = nn.Sequential(
            *_normed(conv(kernel_size=5, stride=2, padding=2), channels),
            *_normed(conv(kernel_size=3, padding=1), channels),
            inner_tom,
            *_normed(conv(kernel_size=3, padding=1), channels),
            *_normed(
                nn.ConvTranspose3d(
                    channels, channels, 5, stride=2, padding=2, output_padding=1, bias=False
                ),
                channels,
            ),
        )
        self.outer_tom = outer_tom

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Shape stays; D, H and W must be even."""
        mixed: Tensor = self.outer_tom(x_BCDHW + self.branch(x_BCDHW))
        return mixed


class SegResMamba(nn.Module):
    """The network of the paper's Figure 1.

    Args:
        spatial_dims: 3; the argument exists for MONAI's signature.
        in_channels: Channels of the image.
        out_channels: Classes, background included, or regions.
        dims: Channels of the stages, all but the last divisible by 8 (group norm of the decoder).
        d_state: State size of the scans.
        d_conv: Width of the causal convolutions.
        expand: Inner width of the Mamba layers as a multiple of their channels.
        num_slices: Slices of the inter-slice scan; None takes the depth of the feature map.
        inner_tom: Mamba inside each block.
        outer_tom: Mamba after each block's residual.
        tom_residual: Add a Mamba layer's input to its output.
        deep_supervision: In training mode also return logits of the coarser decoder levels.
        scan_backend: See `segresmamba.ops.selective_scan`.

    Raises:
        ValueError: For anything but three dimensions, channels below one, or widths that the
            decoder's group norm cannot divide.
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        dims: Sequence[int] = (48, 96, 192, 384),
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        num_slices: int | None = None,
        inner_tom: bool = True,
        outer_tom: bool = True,
        tom_residual: bool = True,
        deep_supervision: bool = False,
        scan_backend: str = "auto",
    ) -> None:
        super().__init__()
        _check_arguments(spatial_dims, in_channels, out_channels, dims)
        self.deep_supervision = deep_supervision
        self.stride = 2 ** (len(dims) + 1)
        tom = partial(
            TriOrientedMamba,
            d_state=d_state,
            d_conv=d_conv,
            expand=expand,
            num_slices=num_slices,
            residual=tom_residual,
            backend=scan_backend,
        )
        self.downs = nn.ModuleList([nn.Conv3d(in_channels, dims[0], 7, stride=2, padding=3)])
        self.downs.extend(_down(fine, coarse) for fine, coarse in itertools.pairwise(dims))
        self.blocks = nn.ModuleList(
            ConvMambaBlock(
                width,
                tom(width) if inner_tom else nn.Identity(),
                tom(width) if outer_tom else nn.Identity(),
            )
            for width in dims
        )
        self.skips = nn.ModuleList(_skip(width) for width in dims)
        pairs = [(coarse, fine) for fine, coarse in itertools.pairwise(dims)][::-1]
        self.ups = nn.ModuleList(_up(coarse, fine) for coarse, fine in pairs)
        self.decoders = nn.ModuleList(ResBlock(3, fine, norm=_DECODER_NORM) for _, fine in pairs)
        self.coarse_heads = nn.ModuleList(
            nn.Conv3d(fine, out_channels, 1) for _, fine in pairs[:-1] if deep_supervision
        )
        self.head = nn.ConvTranspose3d(dims[0], out_channels, kernel_size=2, stride=2)

    def forward(self, x_BCDHW: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, out_channels, D, H, W) at the input size, whatever that is.

        With deep supervision in training mode: a list, full resolution first, then each coarser
        decoder level at its own resolution, finest first.
        """
        size = x_BCDHW.shape[2:]
        features = self._encode(_pad(x_BCDHW, self.stride))
        decoded = self._decode(features)
        logits_BKDHW: Tensor = _crop(self.head(decoded[-1]), size)
        if not (self.deep_supervision and self.training):
            return logits_BKDHW
        # Level i, coarse to fine, has one voxel for stride / 2**(i + 2) voxels of the input.
        coarse = [
            _crop(head(level), [-(-side // (self.stride >> i + 2)) for side in size])
            for i, (head, level) in enumerate(zip(self.coarse_heads, decoded[:-1], strict=True))
        ]
        return [logits_BKDHW, *coarse[::-1]]

    def _encode(self, x_BCDHW: Tensor) -> list[Tensor]:
        """One feature map per stage, fine to coarse, each through its MLP skip."""
        features = []
        for down, block, skip in zip(self.downs, self.blocks, self.skips, strict=True):
            x_BCDHW = block(down(x_BCDHW))
            features.append(skip(x_BCDHW))
        return features

    def _decode(self, features: list[Tensor]) -> list[Tensor]:
        """The decoder's levels, coarse to fine; skips are added, not concatenated."""
        *skips, x_BCDHW = features
        levels = []
        for up, decoder, skip in zip(self.ups, self.decoders, skips[::-1], strict=True):
            x_BCDHW = decoder(up(x_BCDHW) + skip)
            levels.append(x_BCDHW)
        return levels


def _normed(layer: nn.Module, channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return layer, nn.InstanceNorm3d(channels), nn.ReLU(inplace=True)


def _down(fine: int, coarse: int) -> nn.Module:
    return nn.Sequential(
        nn.InstanceNorm3d(fine),
        nn.Conv3d(fine, fine, 3, padding=1, bias=False),
        nn.InstanceNorm3d(fine),
        nn.Conv3d(fine, coarse, 2, stride=2),
    )


def _skip(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.InstanceNorm3d(channels),
        nn.Conv3d(channels, 2 * channels, 1),
        nn.GELU(),
        nn.Conv3d(2 * channels, channels, 1),
    )


def _up(coarse: int, fine: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(coarse, fine, 1, bias=False),
        nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False),
    )


def _pad(x_BCDHW: Tensor, stride: int) -> Tensor:
    """Repeat the far border up to a multiple of stride, and to two voxels in the deepest map.

    Instance norm needs more than one voxel to have a variance.
    """
    target = [-(-size // stride) * stride for size in x_BCDHW.shape[2:]]
    if target == [stride] * 3:
        target[-1] *= 2
    extra = [new - old for new, old in zip(target, x_BCDHW.shape[2:], strict=True)]
    if not any(extra):
        return x_BCDHW
    return F.pad(x_BCDHW, (0, extra[2], 0, extra[1], 0, extra[0]), mode="replicate")


def _crop(x_BCDHW: Tensor, size: Sequence[int]) -> Tensor:
    depth, height, width = size
    return x_BCDHW[:, :, :depth, :height, :width]


def _check_arguments(
    spatial_dims: int, in_channels: int, out_channels: int, dims: Sequence[int]
) -> None:
    if spatial_dims != 3:
        raise ValueError(f"spatial_dims must be 3, got {spatial_dims}")
    if in_channels < 1 or out_channels < 1:
        raise ValueError(
            f"in_channels and out_channels must be at least 1, got {in_channels}, {out_channels}"
        )
    if len(dims) < 2 or any(width < 1 or width % _NORM_GROUPS for width in dims[:-1]):
        raise ValueError(
            f"dims must name two stages or more, each divisible by {_NORM_GROUPS} "
            f"(group norm of the decoder), got {tuple(dims)}"
        )
