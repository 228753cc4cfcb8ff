"""nnU-Net's U-Nets, from dynamic-network-architectures.

They have a file of their own because MONAI, which `models.rivals` imports, takes two seconds and
230 MB of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import nn

from segresmamba.errors import BackendMissingError
from segresmamba.models.arguments import ArgumentError, check_least_levels
from segresmamba.models.padding import Padded
from segresmamba.models.tom import TriOrientedMamba


def resenc_unet(
    in_channels: int,
    out_channels: int,
    *,
    features: Sequence[int],
    blocks: Sequence[int],
    deep_supervision: bool,
) -> Padded:
    """nnU-Net's residual-encoder U-Net, with its initial weights.

    Raises:
        BackendMissingError: If the library is not installed.
    """
    levels = len(features)
    return nnunet(
        in_channels,
        out_channels,
        encoder="residual",
        features=features,
        kernels=[(3, 3, 3)] * levels,
        strides=[(1, 1, 1)] + [(2, 2, 2)] * (levels - 1),
        blocks=blocks,
        decoder_blocks=[1] * (levels - 1),
        deep_supervision=deep_supervision,
    )


def umamba_bot(
    in_channels: int,
    out_channels: int,
    *,
    features: Sequence[int],
    blocks: Sequence[int],
    d_state: int,
    d_conv: int,
    expand: int,
    deep_supervision: bool,
    scan_backend: str,
) -> Padded:
    """The residual-encoder U-Net with a Mamba layer after the last level of its encoder.

    Raises:
        BackendMissingError: If the library is not installed.
    """
    padded = resenc_unet(
        in_channels,
        out_channels,
        features=features,
        blocks=blocks,
        deep_supervision=deep_supervision,
    )
    levels = padded.network.get_submodule("encoder.stages")
    assert isinstance(levels, nn.Sequential)
    bottleneck = TriOrientedMamba(
        features[-1], d_state=d_state, d_conv=d_conv, expand=expand, backend=scan_backend
    )
    levels[-1] = nn.Sequential(levels[-1], bottleneck)
    return padded


def nnunet(
    in_channels: int,
    out_channels: int,
    *,
    encoder: str,
    features: Sequence[int],
    kernels: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
    blocks: Sequence[int],
    decoder_blocks: Sequence[int],
    deep_supervision: bool,
) -> Padded:
    """One of nnU-Net's U-Nets, with its initial weights.

    Raises:
        BackendMissingError: If the library is not installed.
    """
    try:
        import dynamic_network_architectures.architectures.unet as library
    except ImportError as error:
        raise BackendMissingError(
            "nnU-Net's networks come from dynamic-network-architectures, which is not installed",
            where="model.name",
            got=error,
            remedy="pip install 'segresmamba[rivals]'",
        ) from error
    check_least_levels(2, features=features)
    levels = len(features)
    for name, values, count in (
        ("blocks", blocks, levels),
        ("kernels", kernels, levels),
        ("strides", strides, levels),
        ("decoder_blocks", decoder_blocks, levels - 1),
    ):
        if len(values) != count:
            of = f"the {levels} levels" if count == levels else f"{count} levels of the decoder"
            raise ArgumentError(name, f"must be one number for each of {of}", tuple(values))
    is_plain = encoder == "plain"
    blocks_name = "n_conv_per_stage" if is_plain else "n_blocks_per_stage"
    network = (library.PlainConvUNet if is_plain else library.ResidualEncoderUNet)(
        input_channels=in_channels,
        n_stages=levels,
        features_per_stage=tuple(features),
        conv_op=nn.Conv3d,
        kernel_sizes=[list(kernel) for kernel in kernels],
        strides=[list(stride) for stride in strides],
        num_classes=out_channels,
        n_conv_per_stage_decoder=tuple(decoder_blocks),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=deep_supervision,
        **{blocks_name: tuple(blocks)},
    )
    network.apply(network.initialize)
    # The library builds a head for every level, whether its logits are asked for or not.
    if not deep_supervision:
        for level in range(levels - 2):  # all heads but the last, the finest
            network.decoder.seg_layers[level] = nn.Identity()
    # A second name for the encoder, which would put it twice into every saved file.
    del network.decoder.encoder
    return Padded(network, [prod(axis) for axis in zip(*strides, strict=True)])
