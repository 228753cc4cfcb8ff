"""The settings of every network; the field `name` says which network it is."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveInt

from segresmamba.config.section import Section, Target

Size3 = tuple[PositiveInt, PositiveInt, PositiveInt]
FourStages = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
ScanBackend = Literal["auto", "reference", "cpu", "triton", "mamba_ssm"]


class SegResMambaFamily(Section):
    """Settings of the paper's network and its variants, which differ in their defaults only.

    `segresmamba.models.build` takes its defaults from here too, so a variant is defined once.
    """

    name: str
    """Name of the network."""
    dims: tuple[PositiveInt, ...] = (48, 96, 192, 384)
    """Channels of the stages."""
    d_state: PositiveInt = 16
    """State size N of the selective scan."""
    d_conv: PositiveInt = 4
    """Kernel size of the causal depthwise convolution before each scan."""
    expand: PositiveInt = 2
    """Inner width of a Mamba layer as a multiple of its channels."""
    num_slices: PositiveInt | None = None
    """Slices that the inter-slice scan divides a volume into; unset takes the depth of the feature
    map."""
    inner_tom: bool = True
    """Whether each Conv-Mamba block has a tri-oriented Mamba layer inside."""
    outer_toms: NonNegativeInt = 1
    """Tri-oriented Mamba layers after the residual connection of a block."""
    stage_convs: NonNegativeInt = 0
    """3x3x3 convolutions between the residual connection of a block and those layers."""
    tom_residual: bool = True
    """Add the input of a Mamba layer to its output."""
    shared_directions: bool = False
    """Use one set of state-space parameters for all three scan orders instead of one for each."""
    zero_toms: bool = False
    """Begin with Mamba layers that add nothing: their output projection is zero."""
    fine_channels: NonNegativeInt = 0
    """Channels of a level at full resolution around the stages, the finest of which has half of it;
    0 builds none."""
    norm_biases: bool = False
    """Give a bias to convolutions before an instance norm. The norm cancels it, so it changes only
    the number of parameters."""
    released_padding: bool = False
    """Pad where the released code does: the input to a multiple of the stride of the coarsest
    stage, and the input of Mamba layers to even sides."""
    deep_supervision: bool = False
    """Also predict at the coarser levels of the decoder while training."""
    checkpoint_stages: NonNegativeInt = 0
    """Number of stages, from the finest, whose activations are computed again in the backward pass
    instead of being kept. They take less memory and about a third more time; the loss is the same.
    """
    scan_backend: ScanBackend = "auto"
    """Implementation of the selective scan. auto chooses one, and logs which one and why."""


class SegResMambaConfig(SegResMambaFamily):
    """The paper's network (Das et al., MIDL 2025, Figure 1): 68,301,891 parameters for 4 -> 3."""

    name: Literal["segresmamba"] = "segresmamba"
    """Name of the network."""


class SegResMambaNoMambaConfig(SegResMambaFamily):
    """The ablation: the same network with every Mamba layer replaced by the identity."""

    name: Literal["segresmamba_nomamba"] = "segresmamba_nomamba"
    """Name of the network."""
    inner_tom: bool = False
    outer_toms: NonNegativeInt = 0


class SegResMambaFineConfig(SegResMambaFamily):
    """The paper's network with a level at full resolution, and Mamba layers inside blocks only.

    Inside a block the layers read an eighth of the tokens that they read after it.
    """

    name: Literal["segresmamba_fine"] = "segresmamba_fine"
    """Name of the network."""
    outer_toms: NonNegativeInt = 0
    zero_toms: bool = True
    fine_channels: NonNegativeInt = 16


class SegResMambaReleasedConfig(SegResMambaFamily):
    """What the released code computes (github.com/badhandas/SegResMamba at 71426511).

    Its forward pass calls no Mamba layer. It has one more 3x3x3 convolution in each stage, and
    biases before instance norms. The parameters for 4 -> 3 channels:

        70,471,587  used, and built here
         1,560,960  Mamba layers that are built and never called
        39,578,404  encoder and last convolution of the SegResNet whose decoder is used
       111,610,951  the 111.61 M of the released model

    An instance norm cancels 3,936 of the used ones, which are biases.
    """

    name: Literal["segresmamba_released"] = "segresmamba_released"
    """Name of the network."""
    inner_tom: bool = False
    outer_toms: NonNegativeInt = 0
    stage_convs: NonNegativeInt = 1
    norm_biases: bool = True
    released_padding: bool = True


class SegResMambaPaperConfig(SegResMambaFamily):
    """A reconstruction of the network for which the paper prints 119.98 M parameters.

    It is the released network with its Mamba layers called as they are written there (four slices,
    no residual), two more Mamba layers after each block, and one more 3x3x3 convolution in each
    stage. The parameters for 1 -> 14 channels:

        70,426,430  the released network's used part
         1,560,960  Mamba layers inside the blocks
         3,121,920  two more after each block
         5,288,400  one more convolution per stage
        80,397,710  built here, all of it used
        39,578,404  the released model's unused SegResNet encoder, not built
       119,976,114  119.976 M

    The only evidence for it is that the sum fits; the order of the added layers is a guess.
    """

    name: Literal["segresmamba_paper"] = "segresmamba_paper"
    """Name of the network."""
    num_slices: PositiveInt | None = 4
    inner_tom: bool = True
    outer_toms: NonNegativeInt = 2
    stage_convs: NonNegativeInt = 2
    tom_residual: bool = False
    norm_biases: bool = True
    released_padding: bool = True


class SegMambaConfig(Section):
    """SegMamba (Xing et al., MICCAI 2024), the Mamba baseline, with the scans of this project."""

    name: Literal["segmamba"] = "segmamba"
    """Name of the network."""
    dims: FourStages = (48, 96, 192, 384)
    """Channels of the stages."""
    depths: FourStages = (2, 2, 2, 2)
    """Mamba layers of each stage."""
    hidden_size: PositiveInt = 768
    """Channels of the bottleneck."""
    d_state: PositiveInt = 16
    """State size N of the selective scan."""
    d_conv: PositiveInt = 4
    """Kernel size of the causal depthwise convolution before each scan."""
    expand: PositiveInt = 2
    """Inner width of a Mamba layer as a multiple of its channels."""
    num_slices: FourStages | None = None
    """Slices of the inter-slice scan of each stage; unset takes the depth of the feature map. For a
    patch of depth 128 that is [64, 32, 16, 8], as in the official code."""
    scan_backend: ScanBackend = "auto"
    """Implementation of the selective scan. auto chooses one, and logs which one and why."""


class SegResNetConfig(Section):
    """MONAI's SegResNet, the baseline whose decoder SegResMamba shares."""

    name: Literal["segresnet"] = "segresnet"
    """Name of the network."""
    init_filters: PositiveInt = 32
    """Channels of the first level, a multiple of 8."""
    blocks_down: tuple[PositiveInt, ...] = (1, 2, 2, 4)
    """Residual blocks of each level of the encoder."""
    blocks_up: tuple[PositiveInt, ...] = (1, 1, 1)
    """Residual blocks of each level of the decoder."""


class SwinUNETRConfig(Section):
    """MONAI's SwinUNETR, whose encoder is shifted-window attention."""

    name: Literal["swinunetr"] = "swinunetr"
    """Name of the network."""
    feature_size: PositiveInt = 48
    """Channels of the first level, a multiple of 12."""
    use_checkpoint: bool = False
    """Compute the attention again in the backward pass instead of keeping it, which takes less
    memory and more time."""


class UNETRConfig(Section):
    """MONAI's UNETR: a vision transformer. Its position embedding has the size of data.patch."""

    name: Literal["unetr"] = "unetr"
    """Name of the network."""
    feature_size: PositiveInt = 16
    """Channels of the decoder's last level."""
    hidden_size: PositiveInt = 768
    """Channels of the transformer, a multiple of num_heads."""
    mlp_dim: PositiveInt = 3072
    """Hidden channels of the transformer's MLPs."""
    num_heads: PositiveInt = 12
    """Number of attention heads."""


class UNetConfig(Section):
    """MONAI's UNet with residual units."""

    name: Literal["unet"] = "unet"
    """Name of the network."""
    channels: tuple[PositiveInt, ...] = (32, 64, 128, 256, 512)
    """Channels of the levels, each of which has half the resolution of the one before."""
    num_res_units: NonNegativeInt = 2
    """Convolutions of a residual unit; 0 uses plain convolutions instead."""


class DynUNetConfig(Section):
    """MONAI's DynUNet with the channels of nnU-Net's 3D U-Net."""

    name: Literal["dynunet"] = "dynunet"
    """Name of the network."""
    filters: tuple[PositiveInt, ...] = (32, 64, 128, 256, 320, 320)
    """Channels of the levels, each of which has half the resolution of the one before."""
    res_block: bool = False
    """Use residual blocks instead of plain ones."""
    deep_supervision: bool = False
    """Also predict at the coarser levels of the decoder while training, except the coarsest."""


class MedNeXtConfig(Section):
    """MONAI's MedNeXt (Roy et al., MICCAI 2023), with large depthwise convolutions."""

    name: Literal["mednext"] = "mednext"
    """Name of the network."""
    variant: Literal["S", "B", "M", "L"] = "S"
    """Size of the network, as in its paper."""
    kernel_size: Literal[3, 5, 7] = 3
    """Kernel size of the depthwise convolutions."""
    deep_supervision: bool = False
    """Also predict at the coarser levels of the decoder while training."""


class ResEncUNetConfig(Section):
    """nnU-Net's residual-encoder U-Net (Isensee et al., MICCAI 2024), by default its preset M.

    It comes from dynamic-network-architectures: pip install 'segresmamba[rivals]'.
    """

    name: Literal["resenc_unet"] = "resenc_unet"
    """Name of the network."""
    features: tuple[PositiveInt, ...] = (32, 64, 128, 256, 320, 320)
    """Channels of the levels, each of which has half the resolution of the one before."""
    blocks: tuple[PositiveInt, ...] = (1, 3, 4, 6, 6, 6)
    """Residual blocks of each level of the encoder."""
    deep_supervision: bool = False
    """Also predict at the coarser levels of the decoder while training."""


class UMambaBotConfig(Section):
    """A residual U-Net with a Mamba layer at its bottleneck, after U-Mamba (arXiv 2401.04722).

    The layer is this project's, with three scan orders and a residual where U-Mamba_Bot has one
    order and none; the convolutions are those of nnU-Net's residual-encoder U-Net, as many as
    U-Mamba's default. `resenc_unet` with the same `blocks` is the network without Mamba. It comes
    from dynamic-network-architectures: pip install 'segresmamba[rivals]'.
    """

    name: Literal["umamba_bot"] = "umamba_bot"
    """Name of the network."""
    features: tuple[PositiveInt, ...] = (32, 64, 128, 256, 320, 320)
    """Channels of the levels, each of which has half the resolution of the one before."""
    blocks: tuple[PositiveInt, ...] = (2, 2, 2, 1, 1, 1)
    """Residual blocks of each level of the encoder."""
    d_state: PositiveInt = 16
    """State size N of the selective scan."""
    d_conv: PositiveInt = 4
    """Kernel size of the causal depthwise convolution before each scan."""
    expand: PositiveInt = 2
    """Inner width of the Mamba layer as a multiple of its channels."""
    deep_supervision: bool = False
    """Also predict at the coarser levels of the decoder while training."""
    scan_backend: ScanBackend = "auto"
    """Implementation of the selective scan. auto chooses one, and logs which one and why."""


class NnUNetConfig(Section):
    """nnU-Net's U-Nets with the sizes of each level, as its plans give them.

    It comes from dynamic-network-architectures: pip install 'segresmamba[rivals]'.
    """

    name: Literal["nnunet"] = "nnunet"
    """Name of the network."""
    encoder: Literal["plain", "residual"] = "plain"
    """plain: convolutions, as in nnU-Net's default plans; residual: as in its ResEnc presets."""
    features: tuple[PositiveInt, ...] = (32, 64, 128, 256, 320, 320)
    """Channels of the levels."""
    kernels: tuple[Size3, ...] = ((3, 3, 3),) * 6
    """Kernel size (D, H, W) of the convolutions of each level."""
    strides: tuple[Size3, ...] = ((1, 1, 1), *((2, 2, 2),) * 5)
    """Stride (D, H, W) at the beginning of each level; a 1 keeps the resolution of an axis."""
    blocks: tuple[PositiveInt, ...] = (2,) * 6
    """Convolutions, or residual blocks, of each level of the encoder."""
    decoder_blocks: tuple[PositiveInt, ...] = (2,) * 5
    """Convolutions of each level of the decoder."""
    deep_supervision: bool = False
    """Also predict at the coarser levels of the decoder while training."""


class PluginConfig(Section):
    """A network of yours, or of another package. Whoever reads the configuration runs its code."""

    name: Literal["plugin"] = "plugin"
    """Name of the network."""
    target: Target
    """The class or function that makes it, as package.module:Class. It gets in_channels and
    out_channels and maps (B, C, D, H, W) to logits of that size; in training also to a list of
    them, full resolution first."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Its other keywords, such as {spatial_dims: 3, init_filters: 16}."""
    stride: PositiveInt = 32
    """Inputs are padded to multiples of this number of voxels. It is the side of a voxel of the
    deepest level; 1 for a network that takes any size."""

    @property
    def label(self) -> str:
        """What runs are named after: the class."""
        return self.target.rpartition(":")[2]


SegResMambaVariant = (
    SegResMambaConfig
    | SegResMambaReleasedConfig
    | SegResMambaPaperConfig
    | SegResMambaNoMambaConfig
    | SegResMambaFineConfig
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
    | UMambaBotConfig
    | NnUNetConfig
)
ModelConfig = Annotated[SegResMambaVariant | Rival | PluginConfig, Field(discriminator="name")]
NETWORKS: dict[str, type[Section]] = {
    network.model_fields["name"].default: network
    for network in (*get_args(SegResMambaVariant), *get_args(Rival))
}
"""The section of each network, by its name."""
