"""Inputs of any size, for networks that take only multiples of their stride."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from segresmamba.models.arguments import ArgumentError, check_patch_side, each_axis, times


def padded_size(
    size: Sequence[int], multiple: int | Sequence[int], deepest: int | Sequence[int]
) -> list[int]:
    """The next size that a network takes, with two voxels or more at its deepest level.

    Args:
        size: (D, H, W) in voxels.
        multiple: Each side of the result is a multiple of it; one number, or one for each axis.
        deepest: Side of a voxel of the deepest level, in voxels of the input; as `multiple`.
    """
    padded = [-(-side // step) * step for side, step in zip(size, each_axis(multiple), strict=True)]
    # Norms over space need more than one voxel to have a variance. One longer side is enough.
    if all(side <= step for side, step in zip(padded, each_axis(deepest), strict=True)):
        padded[-1] = 2 * each_axis(deepest)[-1]
    return padded


def pad(x_BCDHW: Tensor, padded: Sequence[int]) -> Tensor:
    """Repeat the border at the far end of each side, up to the padded size."""
    # At the far end only: the near corner of the output is then that of the input, see `crop`.
    extra = [new - old for new, old in zip(padded, x_BCDHW.shape[2:], strict=True)]
    if not any(extra):
        return x_BCDHW
    return F.pad(x_BCDHW, (0, extra[2], 0, extra[1], 0, extra[0]), mode="replicate")


def crop(x_BCDHW: Tensor, size: Sequence[int]) -> Tensor:
    """The near corner of this size (D, H, W)."""
    depth, height, width = size
    return x_BCDHW[:, :, :depth, :height, :width]


class Padded(nn.Module):
    """A network that takes any size and returns logits in the form that SegResMamba does.

    Args:
        network: Maps (B, C, D, H, W), sides multiples of `stride`, to logits of that size, or to a
            list of logits, full resolution first, each level at its own.
        stride: Side of a voxel of its deepest level, in voxels of the input; one number, or one for
            each axis.
        fixed_size: The only size (D, H, W) that the network takes, if there is one.
    """

    def __init__(
        self,
        network: nn.Module,
        stride: int | Sequence[int],
        fixed_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.stride, self.fixed_size = network, stride, fixed_size

    def forward(self, x_BCDHW: Tensor) -> Tensor | list[Tensor]:
        """Logits at the input size, or in training mode with deep supervision a list of them.

        Raises:
            ArgumentError: If the input is larger than a fixed size.
        """
        size = x_BCDHW.shape[2:]
        padded = self._padded(size)
        outputs = self.network(pad(x_BCDHW, padded))
        if isinstance(outputs, Tensor):
            return crop(outputs, size)
        if not self.training:
            return crop(outputs[0], size)
        # A coarse level is cropped to what the input covers of it: its loss must not see padding.
        levels = []
        for logits_BKDHW in outputs:
            scales = [old // new for old, new in zip(padded, logits_BKDHW.shape[2:], strict=True)]
            sides = [-(-side // scale) for side, scale in zip(size, scales, strict=True)]
            levels.append(crop(logits_BKDHW, sides))
        return levels

    def check_patch(self, size: Sequence[int]) -> None:
        """Refuse a size (D, H, W) that is not worth training at, even if `forward` takes it.

        Raises:
            ArgumentError: If the deepest level would see the patch as one voxel and padding, or for
                the reason of `forward`.
        """
        check_patch_side(size, self.stride)
        self._padded(size)

    def _padded(self, size: Sequence[int]) -> list[int]:
        if self.fixed_size is None:
            return padded_size(size, self.stride, self.stride)
        if any(side > most for side, most in zip(size, self.fixed_size, strict=True)):
            rule = f"cannot be larger than the {times(self.fixed_size)} this network is made for"
            raise ArgumentError("patch", rule, times(size))
        return list(self.fixed_size)
