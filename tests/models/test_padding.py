from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from segresmamba.models.padding import Padded, crop, pad, padded_size

SIZES = st.tuples(*[st.integers(1, 20)] * 3)


@given(size=SIZES, multiple=st.sampled_from([1, 2, 4]), more=st.sampled_from([1, 2]))
def test_a_crop_undoes_a_pad_and_every_side_fits(
    size: tuple[int, int, int], multiple: int, more: int
) -> None:
    padded = padded_size(size, multiple, multiple * more)
    x_BCDHW = torch.rand(1, 1, *size)
    bigger_BCDHW = pad(x_BCDHW, padded)
    assert list(bigger_BCDHW.shape[2:]) == padded
    assert not any(side % multiple for side in padded)
    assert max(padded) > multiple * more  # two voxels at the deepest level
    assert torch.equal(crop(bigger_BCDHW, size), x_BCDHW)
    assert bigger_BCDHW[0, 0, -1, -1, -1] == x_BCDHW[0, 0, -1, -1, -1]


def test_each_axis_may_have_a_multiple_of_its_own() -> None:
    assert padded_size((5, 5, 5), (1, 4, 8), (1, 4, 8)) == [5, 8, 8]
    assert padded_size((1, 3, 7), (1, 4, 8), (1, 4, 8)) == [1, 4, 16]


class Levels(nn.Module):
    """Its input, and every second and fourth voxel of it."""

    def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
        return [x_BCDHW[:, :, ::step, ::step, ::step] for step in (1, 2, 4)]


@given(size=SIZES)
def test_each_level_covers_the_input_and_no_more(size: tuple[int, int, int]) -> None:
    network, x_BCDHW = Padded(Levels(), 4), torch.rand(1, 1, *size)
    for step, level in zip((1, 2, 4), network(x_BCDHW), strict=True):
        assert torch.equal(level, x_BCDHW[:, :, ::step, ::step, ::step])
    assert torch.equal(network.eval()(x_BCDHW), x_BCDHW)
