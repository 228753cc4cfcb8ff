"""The Conv-Mamba block (Das et al., MIDL 2025, Figure 1b). B batch, C channels, D, H, W voxels.

Its branch works at half the resolution, so the Mamba layer inside reads an eighth of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn


class ConvMambaBlock(nn.Module):
    """A branch at half resolution, added to the input, then layers at full resolution.

    Args:
        channels: C.
        inner_tom: The Mamba layer at half resolution, or identity.
        outer_toms: The Mamba layers after the residual.
        stage_convs: 3x3x3 convolutions between the residual and the outer layers.
        norm_biases: Biases of the branch's convolutions, which its norms cancel.
    """

    def __init__(
        self,
        channels: int,
        inner_tom: nn.Module,
        outer_toms: Sequence[nn.Module],
        *,
        stage_convs: int = 0,
        norm_biases: bool = False,
    ) -> None:
        super().__init__()
        # An instance norm subtracts a bias together with the mean: it would be a parameter without
        # effect. Only the variants that reproduce a parameter count of others have these biases.
        conv = partial(nn.Conv3d, channels, channels, bias=norm_biases)
        # This padding doubles every side exactly. The positions in the branch (0, 3, 7, 10) are
        # names in state dicts: see released.py.
        up = nn.ConvTranspose3d(
            channels, channels, 5, stride=2, padding=2, output_padding=1, bias=norm_biases
        )
        self.branch = nn.Sequential(
            *_normed(conv(kernel_size=5, stride=2, padding=2), channels),
            *_normed(conv(kernel_size=3, padding=1), channels),
            inner_tom,
            *_normed(conv(kernel_size=3, padding=1), channels),
            *_normed(up, channels),
        )
        convs = [nn.Conv3d(channels, channels, 3, padding=1) for _ in range(stage_convs)]
        self.after = nn.Sequential(*convs, *outer_toms)

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Mix the voxels of a feature map; the shape stays."""
        branch_BCDHW = self.branch(x_BCDHW)
        if branch_BCDHW.shape != x_BCDHW.shape:
            # An odd side came back one longer. The released code takes the excess from the front.
            depth, height, width = x_BCDHW.shape[2:]
            branch_BCDHW = branch_BCDHW[:, :, -depth:, -height:, -width:]
        mixed_BCDHW: Tensor = self.after(x_BCDHW + branch_BCDHW)
        return mixed_BCDHW


def _normed(layer: nn.Module, channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return layer, nn.InstanceNorm3d(channels), nn.ReLU(inplace=True)
