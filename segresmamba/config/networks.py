"""The settings of every network; `name` says which one is meant."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveInt

from segresmamba.config.section import Section

FourStages = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
ScanBackend = Literal["auto", "reference", "cpu", "triton", "mamba_ssm"]


class SegResMambaFamily(Section):
    """What the paper's network and its variants have in common: one class, different defaults.

    `segresmamba.models.build` takes its defaults from here too, so a variant is defined once.
    """

    name: str
    """The network."""
    dims: tuple[PositiveInt, ...] = (48, 96, 192, 384)
    """Channels of the stages."""
    d_state: PositiveInt = 16
    """State size N of the selective scan."""
    d_conv: PositiveInt = 4
    """Width of the causal depthwise convolution before each scan."""
    expand: PositiveInt = 2
    """Inner width of a Mamba layer as a multiple of its channels."""
    num_slices: PositiveInt | None = None
    """Slices of the inter-slice scan; unset takes the depth of the feature map."""
    inner_tom: bool = True
    """Tri-oriented Mamba inside each Conv-Mamba block."""
    outer_toms: NonNegativeInt = 1
    """Tri-oriented Mamba layers after the block's residual."""
    stage_convs: NonNegativeInt = 0
    """3x3x3 convolutions between the block's residual and those layers."""
    tom_residual: bool = True
    """Add a Mamba layer's input to its output."""
    shared_directions: bool = False
    """One set of state-space parameters for the three scan orders instead of one each."""
    norm_biases: bool = False
    """Biases on convolutions that feed an instance norm. The norm cancels them: they only count."""
    released_padding: bool = False
    """Pad where the released code does: the input to a multiple of the coarsest stage, Mamba layers
    to even sides."""
    deep_supervision: bool = False
    """Also predict at the coarser decoder levels while training."""
    checkpoint_stages: NonNegativeInt = 0
    """Stages, finest first, whose activations are computed again in the backward pass instead of
    kept: less memory, about a third more time in those stages, the same loss."""
    scan_backend: ScanBackend = "auto"
    """Implementation of the selective scan; auto logs what it chose and why."""


class SegResMambaConfig(SegResMambaFamily):
    """The paper's network (Das et al., MIDL 2025, Figure 1): 68,301,891 parameters for 4 -> 3."""

    name: Literal["segresmamba"] = "segresmamba"
    """The network."""


class SegResMambaNoMambaConfig(SegResMambaFamily):
    """The same network with every Mamba layer replaced by identity, the ablation."""

    name: Literal["segresmamba_nomamba"] = "segresmamba_nomamba"
    """The network."""
    inner_tom: bool = False
    outer_toms: NonNegativeInt = 0


class SegResMambaReleasedConfig(SegResMambaFamily):
    """What the released code computes (github.com/badhandas/SegResMamba at 71426511).

    Its forward pass calls no Mamba layer, has one more 3x3x3 convolution per stage, and biases
    before instance norms. For 4 -> 3 channels:

        70,471,587  used, and built here
         1,560,960  Mamba layers that are built and never called
        39,578,404  encoder and last convolution of the SegResNet whose decoder is used
       111,610,951  the 111.61 M of the released model

    3,936 of those that are used are biases that an instance norm cancels.
    """

    name: Literal["segresmamba_released"] = "segresmamba_released"
    """The network."""
    inner_tom: bool = False
    outer_toms: NonNegativeInt = 0
    stage_convs: NonNegativeInt = 1
    norm_biases: bool = True
    released_padding: bool = True


class SegResMambaPaperConfig(SegResMambaFamily):
    """A reconstruction of the network whose 119.98 M parameters the paper prints.

    The released network with its Mamba layers called, as they are written there (four slices, no
    residual), two more of them and one more 3x3x3 convolution per stage. For 1 -> 14 channels:

        70,426,430  the released network's used part
         1,560,960  Mamba layers inside the blocks
         3,121,920  two more after each block
         5,288,400  one more convolution per stage
        80,397,710  built here, all of it used
        39,578,404  the released model's unused SegResNet encoder, not built
       119,976,114  119.976 M

    That the sum fits is the only evidence for it; the order of what is added is a guess.
    """

    name: Literal["segresmamba_paper"] = "segresmamba_paper"
    """The network."""
    num_slices: PositiveInt | None = 4
    inner_tom: bool = True
    outer_toms: NonNegativeInt = 2
    stage_convs: NonNegativeInt = 2
    tom_residual: bool = False
    norm_biases: bool = True
    released_padding: bool = True


class SegMambaConfig(Section):
    """SegMamba (Xing et al., MICCAI 2024), the Mamba baseline, on this project's scans."""

    name: Literal["segmamba"] = "segmamba"
    """The network."""
    dims: FourStages = (48, 96, 192, 384)
    """Channels of the stages."""
    depths: FourStages = (2, 2, 2, 2)
    """Mamba layers of each stage."""
    hidden_size: PositiveInt = 768
    """Channels of the bottleneck."""
    d_state: PositiveInt = 16
    """State size N of the selective scan."""
    d_conv: PositiveInt = 4
    """Width of the causal depthwise convolution before each scan."""
    expand: PositiveInt = 2
    """Inner width of a Mamba layer as a multiple of its channels."""
    num_slices: FourStages | None = None
    """Slices of each stage's inter-slice scan; unset takes the depth of the feature map, which for
    a patch of depth 128 is what the official code has: [64, 32, 16, 8]."""
    scan_backend: ScanBackend = "auto"
    """Implementation of the selective scan; auto logs what it chose and why."""


class SegResNetConfig(Section):
    """MONAI's SegResNet, the baseline whose decoder SegResMamba shares."""

    name: Literal["segresnet"] = "segresnet"
    """The network."""
    init_filters: PositiveInt = 32
    """Channels of the first level, a multiple of 8."""
    blocks_down: tuple[PositiveInt, ...] = (1, 2, 2, 4)
    """Residual blocks on the way down."""
    blocks_up: tuple[PositiveInt, ...] = (1, 1, 1)
    """Residual blocks on the way up."""


class SwinUNETRConfig(Section):
    """MONAI's SwinUNETR: shifted-window attention on the way down."""

    name: Literal["swinunetr"] = "swinunetr"
    """The network."""
    feature_size: PositiveInt = 48
    """Channels of the first level, a multiple of 12."""
    use_checkpoint: bool = False
    """Compute the attention again in the backward pass instead of keeping it."""


class UNETRConfig(Section):
    """MONAI's UNETR: a vision transformer whose position embedding is made for data.patch."""

    name: Literal["unetr"] = "unetr"
    """The network."""
    feature_size: PositiveInt = 16
    """Channels of the decoder's last level."""
    hidden_size: PositiveInt = 768
    """Channels of the transformer, a multiple of num_heads."""
    mlp_dim: PositiveInt = 3072
    """Inner width of the transformer's MLPs."""
    num_heads: PositiveInt = 12
    """Heads of the attention."""


class UNetConfig(Section):
    """MONAI's UNet with residual units."""

    name: Literal["unet"] = "unet"
    """The network."""
    channels: tuple[PositiveInt, ...] = (32, 64, 128, 256, 512)
    """Channels of the levels, each at half the resolution of the one before."""
    num_res_units: NonNegativeInt = 2
    """Convolutions of a residual unit; 0 has plain convolutions."""


class DynUNetConfig(Section):
    """MONAI's DynUNet with the channels of nnU-Net's 3D U-Net."""

    name: Literal["dynunet"] = "dynunet"
    """The network."""
    filters: tuple[PositiveInt, ...] = (32, 64, 128, 256, 320, 320)
    """Channels of the levels, each at half the resolution of the one before."""
    res_block: bool = False
    """Residual blocks instead of plain ones."""
    deep_supervision: bool = False
    """Also predict at the coarser decoder levels while training, all but the coarsest."""


class MedNeXtConfig(Section):
    """MONAI's MedNeXt (Roy et al., MICCAI 2023): large depthwise kernels."""

    name: Literal["mednext"] = "mednext"
    """The network."""
    variant: Literal["S", "B", "M", "L"] = "S"
    """Its size in the paper."""
    kernel_size: Literal[3, 5, 7] = 3
    """Side of the depthwise convolutions."""
    deep_supervision: bool = False
    """Also predict at the coarser decoder levels while training."""


class ResEncUNetConfig(Section):
    """nnU-Net's residual-encoder U-Net (Isensee et al., MICCAI 2024), as its preset M has it.

    From dynamic-network-architectures: pip install 'segresmamba[rivals]'.
    """

    name: Literal["resenc_unet"] = "resenc_unet"
    """The network."""
    features: tuple[PositiveInt, ...] = (32, 64, 128, 256, 320, 320)
    """Channels of the levels, each at half the resolution of the one before."""
    blocks: tuple[PositiveInt, ...] = (1, 3, 4, 6, 6, 6)
    """Residual blocks of each level of the encoder."""
    deep_supervision: bool = False
    """Also predict at the coarser decoder levels while training."""


SegResMambaVariant = (
    SegResMambaConfig
    | SegResMambaReleasedConfig
    | SegResMambaPaperConfig
    | SegResMambaNoMambaConfig
)
Rival = (
    SegMambaConfig
    | SegResNetConfig
    | SwinUNETRConfig
    | UNETRConfig
    | UNetConfig
    | DynUNetConfig
    | MedNeXtConfig
    | ResEncUNetConfig
)
ModelConfig = Annotated[SegResMambaVariant | Rival, Field(discriminator="name")]
NETWORKS: dict[str, type[Section]] = {
    network.model_fields["name"].default: network
    for network in (*get_args(SegResMambaVariant), *get_args(Rival))
}
"""Section of each network, by name."""
