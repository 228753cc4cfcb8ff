"""SegMamba (Xing et al., MICCAI 2024, arXiv 2401.13560): the Mamba baseline, on our scans.

Shapes: B batch, C channels, D, H, W voxels. Stage i works at 1 / 2**(i+1) of the input. The
official code needs a fork of mamba-ssm; this network runs on `segresmamba.ops`.
`segmamba_official` loads the official weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from segresmamba.models.arguments import (
    ArgumentError,
    check_counts,
    check_mamba,
    check_patch_side,
    check_slices,
)
from segresmamba.models.padding import crop, pad, padded_size
from segresmamba.models.tom import TriOrientedMamba

_STAGES = 4
_DEEPEST = 1 << _STAGES  # voxels of the input along a side of a voxel of the last stage


class SegMamba(nn.Module):
    """Convolutions and tri-oriented Mamba on the way down, UNETR's residual blocks on the way up.

    Convolutions before an instance norm have no bias here, because the norm would cancel it.

    Args:
        spatial_dims: 3; the argument exists for MONAI's signature.
        in_channels: Channels of the image.
        out_channels: Classes, background included, or regions.
        dims: Channels of the four stages.
        depths: Number of Mamba layers of each stage.
        hidden_size: Channels of the bottleneck.
        d_state: State size of the scans.
        d_conv: Width of the causal convolutions.
        expand: Inner width of the Mamba layers as a multiple of their channels.
        num_slices: Slices of each stage's inter-slice scan; None takes the depth of the feature
            map. For an input of depth 128 these are the official code's 64, 32, 16, 8.
        scan_backend: See `segresmamba.ops.selective_scan`.

    Raises:
        ArgumentError: For anything but three dimensions and four stages, or a count below 1.
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        dims: Sequence[int] = (48, 96, 192, 384),
        depths: Sequence[int] = (2, 2, 2, 2),
        hidden_size: int = 768,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        num_slices: Sequence[int] | None = None,
        scan_backend: str = "auto",
    ) -> None:
        # MONAI takes two seconds to import, and only this network and the rivals need it.
        from monai.networks.blocks.dynunet_block import UnetOutBlock
        from monai.networks.blocks.unetr_block import UnetrUpBlock

        super().__init__()
        check_mamba(spatial_dims, in_channels, out_channels, d_state, d_conv, expand)
        check_counts(1, hidden_size=hidden_size)
        # The layers of all stages have the same settings but for these.
        lists = {"dims": dims, "depths": depths, "num_slices": num_slices or [1] * _STAGES}
        for name, values in lists.items():
            if len(values) != _STAGES:
                raise ArgumentError(name, f"must name {_STAGES} stages", tuple(values))
            check_counts(1, **{name: min(values)})
        self.num_slices = num_slices
        # Checkpoints hold the parameters in the order in which modules are registered here.
        self.downs = nn.ModuleList([nn.Conv3d(in_channels, dims[0], 7, stride=2, padding=3)])
        self.downs.extend(
            nn.Sequential(nn.InstanceNorm3d(fine), nn.Conv3d(fine, coarse, 2, stride=2))
            for fine, coarse in itertools.pairwise(dims)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                GatedSpatialConvolution(width),
                *(
                    TriOrientedMamba(
                        width,
                        d_state=d_state,
                        d_conv=d_conv,
                        expand=expand,
                        num_slices=num_slices[stage] if num_slices else None,
                        backend=scan_backend,
                    )
                    for _ in range(depths[stage])
                ),
            )
            for stage, width in enumerate(dims)
        )
        self.skips = nn.ModuleList(mlp_skip(width) for width in dims)
        # One more lift than stages: the decoder also gets the input itself, at full resolution.
        self.lifts = nn.ModuleList(
            _residual(fine, coarse)
            for fine, coarse in itertools.pairwise([in_channels, *dims, hidden_size])
        )
        self.ups = nn.ModuleList(
            UnetrUpBlock(3, coarse, fine, 3, 2, "instance", res_block=True)
            for coarse, fine in itertools.pairwise([hidden_size, *dims[::-1]])
        )
        self.refine = _residual(dims[0], dims[0])
        self.head = UnetOutBlock(3, dims[0], out_channels)

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Logits (B, out_channels, D, H, W) at the input size, which may be any.

        Raises:
            ArgumentError: If num_slices does not divide the tokens of a stage; it names the stage.
        """
        size = x_BCDHW.shape[2:]
        padded = padded_size(size, _DEEPEST, _DEEPEST)
        # Before anything is computed: the scan's own error could not name the stage.
        self._check_slices(padded)
        x_BCDHW = pad(x_BCDHW, padded)
        features = [x_BCDHW]
        for down, block, skip in zip(self.downs, self.blocks, self.skips, strict=True):
            x_BCDHW = block(down(x_BCDHW))
            features.append(skip(x_BCDHW))
        *levels, x_BCDHW = [
            lift(feature) for lift, feature in zip(self.lifts, features, strict=True)
        ]
        for up, level_BCDHW in zip(self.ups, levels[::-1], strict=True):
            x_BCDHW = up(x_BCDHW, level_BCDHW)
        return crop(self.head(self.refine(x_BCDHW)), size)

    def check_patch(self, size: Sequence[int]) -> None:
        """Refuse a size (D, H, W) that is not worth training at, even if `forward` takes it.

        Raises:
            ArgumentError: If the deepest stage would see the patch as one voxel, or for the reason
                of `forward`.
        """
        check_patch_side(size, _DEEPEST)
        self._check_slices(padded_size(size, _DEEPEST, _DEEPEST))

    def _check_slices(self, padded: Sequence[int]) -> None:
        for stage, slices in enumerate(self.num_slices or ()):
            check_slices(slices, [side // (2 << stage) for side in padded], f"stage {stage}")


class GatedSpatialConvolution(nn.Module):
    """x + merge(wide(x) + narrow(x)): two 3x3x3 convolutions beside a 1x1x1, each with its norm.

    A gate would multiply the two. The official code adds them, and so does this module.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = nn.Sequential(*_conv(channels, 3), *_conv(channels, 3))
        self.narrow = nn.Sequential(*_conv(channels, 1))
        self.merge = nn.Sequential(*_conv(channels, 1))

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Mix the voxels of a feature map; the shape stays."""
        merged_BCDHW: Tensor = self.merge(self.wide(x_BCDHW) + self.narrow(x_BCDHW))
        return x_BCDHW + merged_BCDHW


def mlp_skip(channels: int) -> nn.Module:
    """A stage's skip connection: an instance norm, then an MLP over the channels of each voxel.

    SegResMamba kept this part of SegMamba's encoder (Das et al., MIDL 2025, Figure 1).
    """
    # A linear layer over channels, for each voxel, is a 1x1x1 convolution.
    return nn.Sequential(
        nn.InstanceNorm3d(channels),
        nn.Conv3d(channels, 2 * channels, 1),
        nn.GELU(),
        nn.Conv3d(2 * channels, channels, 1),
    )


def _conv(channels: int, kernel_size: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    conv = nn.Conv3d(channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
    return conv, nn.InstanceNorm3d(channels), nn.ReLU(inplace=True)


def _residual(fine: int, coarse: int) -> nn.Module:
    from monai.networks.blocks.unetr_block import UnetrBasicBlock

    block: nn.Module = UnetrBasicBlock(3, fine, coarse, 3, 1, "instance", res_block=True)
    return block
