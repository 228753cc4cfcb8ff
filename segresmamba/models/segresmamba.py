"""SegResMamba (Das et al., MIDL 2025, Figure 1): Conv-Mamba encoder, SegResNet decoder.

Shapes: B batch, C channels, D, H, W voxels. Stage i works at 1 / 2**(i+1) of the input and the
inside of its block at half of that. With four stages, inputs are therefore padded to multiples
of 32.

One class makes the whole family. `segresmamba.config.networks` says which switches make which
network, why, and how their parameters add up to the figures of the paper and its released code.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segresmamba.models.arguments import (
    ArgumentError,
    check_counts,
    check_mamba,
    check_patch_side,
    check_slices,
)
from segresmamba.models.conv_mamba import ConvMambaBlock
from segresmamba.models.padding import crop, pad, padded_size
from segresmamba.models.segmamba import mlp_skip
from segresmamba.models.tom import TriOrientedMamba

# The norm of SegResNet's blocks, MONAI's default.
_NORM_GROUPS = 8


class SegResMamba(nn.Module):
    """The network of the paper's Figure 1. Its switches make the other members of the family.

    Args:
        spatial_dims: 3; the argument exists for MONAI's signature.
        in_channels: Channels of the image.
        out_channels: Classes, background included, or regions.
        dims: Channels of the stages, all but the last divisible by 8 (group norm of the decoder).
        d_state: State size of the scans.
        d_conv: Width of the causal convolutions.
        expand: Inner width of the Mamba layers as a multiple of their channels.
        num_slices: Slices of the inter-slice scan; None takes the depth of the feature map.
        inner_tom: Use a Mamba layer inside each block.
        outer_toms: Mamba layers after each block's residual.
        stage_convs: 3x3x3 convolutions between the residual and those layers.
        tom_residual: Add a Mamba layer's input to its output.
        shared_directions: One set of state-space parameters for the three scan orders.
        zero_toms: Begin with Mamba layers whose output projection is zero. With the residual they
            are the identity at first.
        fine_channels: Channels of a level at full resolution around the stages, see `FineLevel`; 0
            builds none, as the paper.
        norm_biases: Biases on convolutions that feed an instance norm, which cancels them.
        released_padding: Pad as the released code does: the input to a multiple of the coarsest
            stage only (16 with four stages), odd sides inside the blocks, Mamba layers to even
            sides. Four slices then divide every map, but a block with an odd side shifts its
            branch by a voxel against its residual.
        deep_supervision: In training mode also return logits of the coarser decoder levels.
        checkpoint_stages: Number of stages, from the finest on, whose encoder and decoder are
            computed again in the backward pass instead of kept.
        scan_backend: See `segresmamba.ops.selective_scan`.

    Raises:
        ArgumentError: For anything but three dimensions, a count below its least value, widths that
            the group norms cannot divide, or zero_toms without tom_residual. The message names the
            argument.
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
        outer_toms: int = 1,
        stage_convs: int = 0,
        tom_residual: bool = True,
        shared_directions: bool = False,
        zero_toms: bool = False,
        fine_channels: int = 0,
        norm_biases: bool = False,
        released_padding: bool = False,
        deep_supervision: bool = False,
        checkpoint_stages: int = 0,
        scan_backend: str = "auto",
    ) -> None:
        super().__init__()
        check_mamba(spatial_dims, in_channels, out_channels, d_state, d_conv, expand)
        check_counts(0, outer_toms=outer_toms, stage_convs=stage_convs)
        check_counts(1, num_slices=1 if num_slices is None else num_slices)
        _check_stages(dims, fine_channels, checkpoint_stages)
        if zero_toms and not tom_residual:
            # A branch of zeros would get no gradient through its norms and ReLUs, ever.
            raise ArgumentError("zero_toms", "needs tom_residual", zero_toms)
        self.num_slices = num_slices
        self.inner_tom, self.outer_toms = inner_tom, outer_toms
        self.released_padding = released_padding
        self.deep_supervision = deep_supervision
        self.checkpoint_stages = checkpoint_stages
        tom = partial(
            TriOrientedMamba,
            d_state=d_state,
            d_conv=d_conv,
            expand=expand,
            num_slices=num_slices,
            residual=tom_residual,
            zero_output=zero_toms,
            shared_directions=shared_directions,
            pad_to_even=released_padding,
            backend=scan_backend,
        )
        # Checkpoints hold the parameters in the order in which modules are registered here.
        # The stem of the paper is SegMamba's.
        stem = (
            nn.Conv3d(fine_channels, dims[0], 3, stride=2, padding=1)
            if fine_channels
            else nn.Conv3d(in_channels, dims[0], 7, stride=2, padding=3)
        )
        downs = [_down(fine, coarse, norm_biases) for fine, coarse in itertools.pairwise(dims)]
        self.downs = nn.ModuleList([stem, *downs])
        self.blocks = nn.ModuleList(
            ConvMambaBlock(
                width,
                tom(width) if inner_tom else nn.Identity(),
                [tom(width) for _ in range(outer_toms)],
                stage_convs=stage_convs,
                norm_biases=norm_biases,
            )
            for width in dims
        )
        self.skips = nn.ModuleList(mlp_skip(width) for width in dims)
        self._build_decoder(dims, out_channels)
        self.fine: FineLevel | None = None
        if fine_channels:
            self.fine = FineLevel(in_channels, fine_channels, dims[0], out_channels)
        else:
            # The finest stage has half the resolution of the input: the head also doubles it.
            self.head = nn.ConvTranspose3d(dims[0], out_channels, kernel_size=2, stride=2)

    def _build_decoder(self, dims: Sequence[int], out_channels: int) -> None:
        """SegResNet's decoder (Figure 1), from the coarsest stage to the finest."""
        pairs = [(coarse, fine) for fine, coarse in itertools.pairwise(dims)][::-1]
        self.ups = nn.ModuleList(_up(coarse, fine) for coarse, fine in pairs)
        self.decoders = nn.ModuleList(ResBlock(fine) for _, fine in pairs)
        # Without deep supervision these heads would be parameters that never get a gradient.
        self.coarse_heads = nn.ModuleList(
            nn.Conv3d(fine, out_channels, 1) for _, fine in pairs[:-1] if self.deep_supervision
        )

    def forward(self, x_BCDHW: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, out_channels, D, H, W) at the input size, which may be any.

        With deep supervision in training mode a list: full resolution first, then each coarser
        decoder level at its own resolution, finest first.

        Raises:
            ArgumentError: If num_slices does not divide the tokens of a stage; it names the stage.
        """
        size = x_BCDHW.shape[2:]
        padded = self._padded(size)
        # Before anything is computed: the scan's own error could not name the stage.
        self._check_slices(padded)
        x_BCDHW = pad(x_BCDHW, padded)
        if self.fine is None:
            decoded = self._decode(self._encode(x_BCDHW))
            logits_BKDHW = self.head(decoded[-1])
        else:
            # Both parts of the fine level are checkpointed with the finest stage.
            fine_BCDHW = self._run(0, self.fine.encode, x_BCDHW)
            decoded = self._decode(self._encode(fine_BCDHW))
            logits_BKDHW = self._run(0, self.fine.decode, decoded[-1], fine_BCDHW)
        logits_BKDHW = crop(logits_BKDHW, size)
        if not (self.deep_supervision and self.training):
            return logits_BKDHW
        # The levels go from coarse to fine; the last of them has half the resolution of the input.
        # A coarse level is cropped to what the input covers of it: its loss must not see padding.
        scales = [1 << len(decoded) - i for i in range(len(decoded))]
        coarse = [
            crop(head(level), [-(-side // scale) for side in size])
            for head, level, scale in zip(self.coarse_heads, decoded[:-1], scales[:-1], strict=True)
        ]
        return [logits_BKDHW, *coarse[::-1]]

    def check_patch(self, size: Sequence[int]) -> None:
        """Refuse a size (D, H, W) that is not worth training at, even if `forward` takes it.

        Raises:
            ArgumentError: If the deepest block would see the patch as one voxel and padding, or for
                the reason of `forward`.
        """
        check_patch_side(size, 2 << len(self.blocks))
        self._check_slices(self._padded(size))

    def _padded(self, size: Sequence[int]) -> list[int]:
        # The deepest voxel is that inside the last block: its branch halves the resolution again.
        deepest = 2 << len(self.blocks)
        return padded_size(size, deepest // 2 if self.released_padding else deepest, deepest)

    def _check_slices(self, padded: Sequence[int]) -> None:
        """Refuse a number of slices that does not divide the tokens of every Mamba layer."""
        if self.num_slices is None:
            return
        for stage in range(len(self.blocks)):
            scanned = [(f"stage {stage}", 2 << stage)] if self.outer_toms else []
            scanned += [(f"the inside of stage {stage}", 4 << stage)] if self.inner_tom else []
            for place, scale in scanned:
                sides = [-(-side // scale) for side in padded]
                even = [side + side % 2 for side in sides]
                check_slices(self.num_slices, even if self.released_padding else sides, place)

    def _encode(self, x_BCDHW: Tensor) -> list[Tensor]:
        """One feature map per stage, fine to coarse, each through its MLP skip."""
        features = []
        for stage in range(len(self.blocks)):
            x_BCDHW, feature_BCDHW = self._run(stage, self._down_to, stage, x_BCDHW)
            features.append(feature_BCDHW)
        return features

    def _decode(self, features: list[Tensor]) -> list[Tensor]:
        """The decoder's levels, coarse to fine; skips are added, not concatenated."""
        *skips, x_BCDHW = features
        levels = []
        for level, skip_BCDHW in enumerate(skips[::-1]):
            stage = len(skips) - 1 - level
            x_BCDHW = self._run(stage, self._up_to, level, x_BCDHW, skip_BCDHW)
            levels.append(x_BCDHW)
        return levels

    # Methods, not closures in the loops above: the backward pass computes them again after the loop
    # has ended, when a closure would see the last value of its variable.

    def _down_to(self, stage: int, x_BCDHW: Tensor) -> tuple[Tensor, Tensor]:
        x_BCDHW = self.blocks[stage](self.downs[stage](x_BCDHW))
        return x_BCDHW, self.skips[stage](x_BCDHW)

    def _up_to(self, level: int, x_BCDHW: Tensor, skip_BCDHW: Tensor) -> Tensor:
        decoded_BCDHW: Tensor = self.decoders[level](self.ups[level](x_BCDHW) + skip_BCDHW)
        return decoded_BCDHW

    def _run(self, stage: int, part: Callable[..., Any], *inputs: Any) -> Any:
        """Compute a part of a stage; the backward pass computes it again if the stage says so."""
        if stage >= self.checkpoint_stages or not torch.is_grad_enabled():
            return part(*inputs)
        # Nothing here is random, so the state of the random generators need not be kept.
        return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)


class FineLevel(nn.Module):
    """A level at full resolution around the stages, as the first and last of SegResNet.

    The paper's stem halves the resolution at once and its head draws eight voxels from one, so
    nothing between them has seen a single voxel. Two residual blocks of few channels do. Their
    norms are computed again in the backward pass: at this resolution they are most of the memory.
    """

    def __init__(self, in_channels: int, channels: int, coarse: int, out_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv3d(in_channels, channels, 3, padding=1, bias=False)
        self.encoder = ResBlock(channels, recompute_norms=True)
        self.up = _up(coarse, channels)
        self.decoder = ResBlock(channels, recompute_norms=True)
        self.norm = nn.GroupNorm(_NORM_GROUPS, channels)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Conv3d(channels, out_channels, 1)

    def encode(self, x_BCDHW: Tensor) -> Tensor:
        """Features of the image for the first stage and for `decode`."""
        encoded_BCDHW: Tensor = self.encoder(self.stem(x_BCDHW))
        return encoded_BCDHW

    def decode(self, x_BCDHW: Tensor, skip_BCDHW: Tensor) -> Tensor:
        """Logits from the last decoder level, of half the resolution, and the features."""
        x_BCDHW = self.decoder(self.up(x_BCDHW) + skip_BCDHW)
        return _normed_again(self.norm, self.act, self.head, x_BCDHW)


class ResBlock(nn.Module):
    """SegResNet's residual block. MONAI's has the same names of weights and the same output.

    Importing anything of MONAI takes two seconds, which every start of a training would pay.

    Args:
        channels: C, divisible by 8.
        recompute_norms: Keep the input of each norm only, and compute the norm and its activation
            again in the backward pass: half the memory for little time.
    """

    def __init__(self, channels: int, *, recompute_norms: bool = False) -> None:
        super().__init__()
        self._normed = _normed_again if recompute_norms else _normed
        self.norm1 = nn.GroupNorm(_NORM_GROUPS, channels)
        self.norm2 = nn.GroupNorm(_NORM_GROUPS, channels)
        self.act = nn.ReLU(inplace=True)
        self.conv1, self.conv2 = (
            nn.Sequential(OrderedDict(conv=nn.Conv3d(channels, channels, 3, padding=1, bias=False)))
            for _ in range(2)
        )

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Two convolutions, each after a norm, added to the input; the shape stays."""
        inner_BCDHW = self._normed(self.norm1, self.act, self.conv1, x_BCDHW)
        return self._normed(self.norm2, self.act, self.conv2, inner_BCDHW).add_(x_BCDHW)


def _normed(norm: nn.Module, act: nn.Module, conv: nn.Module, x_BCDHW: Tensor) -> Tensor:
    """A convolution after a norm and an activation."""
    convolved_BCDHW: Tensor = conv(act(norm(x_BCDHW)))
    return convolved_BCDHW


def _normed_again(norm: nn.Module, act: nn.Module, conv: nn.Module, x_BCDHW: Tensor) -> Tensor:
    """The same, keeping x_BCDHW only for the backward pass.

    The recomputation stops as soon as it has what the backward pass needs, which is before the
    convolution.
    """
    if not torch.is_grad_enabled():
        return _normed(norm, act, conv, x_BCDHW)
    convolved_BCDHW: Tensor = checkpoint(
        _normed, norm, act, conv, x_BCDHW, use_reentrant=False, preserve_rng_state=False
    )
    return convolved_BCDHW


def _down(fine: int, coarse: int, norm_biases: bool) -> nn.Module:
    # The last convolution keeps its bias: no norm follows it. See ConvMambaBlock about the other.
    return nn.Sequential(
        nn.InstanceNorm3d(fine),
        nn.Conv3d(fine, fine, 3, padding=1, bias=norm_biases),
        nn.InstanceNorm3d(fine),
        nn.Conv3d(fine, coarse, 2, stride=2),
    )


def _up(coarse: int, fine: int) -> nn.Module:
    # Fewer channels first: enlarging them costs less afterwards.
    return nn.Sequential(
        nn.Conv3d(coarse, fine, 1, bias=False),
        nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False),
    )


def _check_stages(dims: Sequence[int], fine_channels: int, checkpoint_stages: int) -> None:
    if len(dims) < 2:
        raise ArgumentError("dims", "must name two stages or more", tuple(dims))
    check_counts(1, dims=min(dims))
    # The coarsest stage has no decoder level, so its width need not be divisible.
    if any(width % _NORM_GROUPS for width in dims[:-1]):
        rule = f"must be divisible by {_NORM_GROUPS}, all but the last (the decoder's group norm)"
        raise ArgumentError("dims", rule, tuple(dims))
    check_counts(0, fine_channels=fine_channels, checkpoint_stages=checkpoint_stages)
    if fine_channels % _NORM_GROUPS:
        rule = f"must be divisible by {_NORM_GROUPS} (group norm)"
        raise ArgumentError("fine_channels", rule, fine_channels)
    if checkpoint_stages > len(dims):
        rule = f"must be at most the {len(dims)} stages"
        raise ArgumentError("checkpoint_stages", rule, checkpoint_stages)
