"""The settings of every network; `name` says which one is meant."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from segresmamba.config.section import Section


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
    scan_backend: Literal["auto", "reference", "cpu", "triton", "mamba_ssm"] = "auto"
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


class SegResNetConfig(Section):
    """MONAI's SegResNet, the baseline whose decoder SegResMamba shares."""

    name: Literal["segresnet"] = "segresnet"
    """The network."""
    init_filters: PositiveInt = 32
    """Channels of the first level."""
    blocks_down: tuple[PositiveInt, ...] = (1, 2, 2, 4)
    """Residual blocks on the way down."""
    blocks_up: tuple[PositiveInt, ...] = (1, 1, 1)
    """Residual blocks on the way up."""


SegResMambaVariant = (
    SegResMambaConfig
    | SegResMambaReleasedConfig
    | SegResMambaPaperConfig
    | SegResMambaNoMambaConfig
)
ModelConfig = Annotated[SegResMambaVariant | SegResNetConfig, Field(discriminator="name")]
