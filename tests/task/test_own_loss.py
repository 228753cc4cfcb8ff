"""A loss of another package: called as promised, tried before training, refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segresmamba.config import LossConfig
from segresmamba.errors import ConfigError
from segresmamba.task.classes import Classes
from segresmamba.task.losses import SegmentationLoss

EXCLUSIVE = Classes(members={"ball": (1,), "box": (2,)}, values=(0, 1, 2), exclusive=True)
REGIONS = Classes(members={"all": (1, 2), "box": (2,)}, values=(0, 1, 2), exclusive=False)


class Squared(nn.Module):
    """Mean squared error with a factor for each channel, a buffer, over the voxels that count."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, logits: Tensor, masks: Tensor, mask: Tensor | None = None) -> Tensor:
        errors = (logits - masks).square() * self.factor
        return errors.mean() if mask is None else errors[mask.expand_as(errors)].mean()


class Weighted(Squared):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


class WithoutMask(nn.Module):
    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        return (logits - masks).square().mean()


class Broken(WithoutMask):
    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        raise KeyError("nothing here")


class Voxelwise(WithoutMask):
    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        return (logits - masks).square()


class Constant(WithoutMask):
    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        return torch.zeros((), requires_grad=True)


def number() -> int:
    return 3


def loss_of(
    name: str, classes: Classes = EXCLUSIVE, *, padded: bool = False, **kwargs: Any
) -> SegmentationLoss:
    config = LossConfig(target=f"{__name__}:{name}", kwargs=kwargs)
    return SegmentationLoss(classes, config, padded=padded)


@pytest.fixture
def logits_BKDHW() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 4, 5, 6, requires_grad=True)


@pytest.fixture
def label_BDHW() -> Tensor:
    return torch.randint(0, 3, (2, 4, 5, 6), generator=torch.Generator().manual_seed(0))


def test_it_gets_logits_and_a_mask_for_each_class(logits_BKDHW: Tensor, label_BDHW: Tensor) -> None:
    loss = loss_of("Squared", factor=2.0)(logits_BKDHW, label_BDHW)
    masks_BKDHW = torch.stack([label_BDHW == value for value in range(3)], 1)
    torch.testing.assert_close(loss, 2 * (logits_BKDHW - masks_BKDHW.float()).square().mean())
    regions = loss_of("Squared", REGIONS)(logits_BKDHW[:, 1:], label_BDHW)
    masks_BKDHW = torch.stack([label_BDHW > 0, label_BDHW == 2], 1)
    torch.testing.assert_close(regions, (logits_BKDHW[:, 1:] - masks_BKDHW.float()).square().mean())


def test_a_loss_of_monai_is_what_monai_computes(logits_BKDHW: Tensor, label_BDHW: Tensor) -> None:
    from monai.losses.dice import GeneralizedDiceLoss

    config = LossConfig(target="monai.losses.dice:GeneralizedDiceLoss", kwargs={"softmax": True})
    found = SegmentationLoss(EXCLUSIVE, config)(logits_BKDHW, label_BDHW)
    monais = GeneralizedDiceLoss(softmax=True, to_onehot_y=True)
    torch.testing.assert_close(found, monais(logits_BKDHW, label_BDHW[:, None]))


def test_voxels_that_do_not_count_are_told_to_it(logits_BKDHW: Tensor, label_BDHW: Tensor) -> None:
    padded_BDHW = label_BDHW.clone()
    padded_BDHW[:, :, :, 4:] = -1
    loss = loss_of("Squared", padded=True)
    part = loss_of("Squared")(logits_BKDHW[..., :4], label_BDHW[..., :4])
    torch.testing.assert_close(loss(logits_BKDHW, padded_BDHW), part)


def test_each_output_of_deep_supervision_has_its_weight(
    logits_BKDHW: Tensor, label_BDHW: Tensor
) -> None:
    config = LossConfig(target=f"{__name__}:Squared", deep_supervision=(0.0, 1.0))
    levels = [torch.zeros_like(logits_BKDHW), logits_BKDHW]
    found = SegmentationLoss(EXCLUSIVE, config)(levels, label_BDHW)
    torch.testing.assert_close(found, loss_of("Squared")(logits_BKDHW, label_BDHW))


@pytest.mark.parametrize(
    ("name", "kwargs", "text"),
    [
        ("NoSuch", {}, "has no attribute 'NoSuch'"),
        ("Squared", {"power": 3}, "unexpected keyword argument 'power'"),
        ("number", {}, "made int, which cannot be called"),
        ("Broken", {}, "KeyError: 'nothing here'"),
        ("Voxelwise", {}, "returned a tensor (2, 3, 8, 8, 8)"),
        ("Constant", {}, "returned a constant"),
        ("Weighted", {}, "Weighted"),
    ],
)
def test_what_does_not_work_is_refused(name: str, kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loss_of(name, **kwargs)
    assert text in str(caught.value.got)
    assert caught.value.where.startswith("loss.target")


def test_a_loss_that_would_count_the_padding_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot leave out voxels"):
        loss_of("WithoutMask", padded=True)
