"""The settings of every network; `name` says which one is meant."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from segresmamba.config.section import Section


class SegResMambaConfig(Section):
    """The paper's network (Das et al., MIDL 2025, Figure 1)."""

    name: Literal["segresmamba"] = "segresmamba"
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
    outer_tom: bool = True
    """Tri-oriented Mamba after the block's residual."""
    tom_residual: bool = True
    """Add a Mamba layer's input to its output."""
    deep_supervision: bool = False
    """Also predict at the coarser decoder levels while training."""
    scan_backend: Literal["auto", "reference", "cpu", "triton", "mamba_ssm"] = "auto"
    """Implementation of the selective scan; auto logs what it chose and why."""


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


ModelConfig = Annotated[SegResMambaConfig | SegResNetConfig, Field(discriminator="name")]
