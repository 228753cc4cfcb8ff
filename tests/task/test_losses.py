from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from segresmamba.config import LossConfig
from segresmamba.data.stream.batch import PADDING
from segresmamba.task.losses import SegmentationLoss, build_loss, resize_label
from tests.task.test_classes import BRATS, LABELS, config, random_label

SMOOTH = 1e-5


def losses() -> list[SegmentationLoss]:
    return [build_loss(config(), LABELS), build_loss(config(BRATS), LABELS)]


def random_logits(channels: int, seed: int = 1) -> Tensor:
    return torch.randn(2, channels, 4, 5, 6, generator=torch.Generator().manual_seed(seed))


def certain_logits(loss: SegmentationLoss, label: Tensor) -> Tensor:
    target = loss.classes.encode(label)
    if loss.classes.exclusive:
        target = one_hot(target, loss.classes.channels).movedim(-1, 1)
    return 200.0 * target.float() - 100.0


def test_exclusive_loss_is_foreground_dice_per_sample_plus_cross_entropy() -> None:
    loss, label, logits = losses()[0], random_label((0, 1, 2, 3), 0), random_logits(4)
    p = logits.softmax(1)
    t = one_hot(label, 4).movedim(-1, 1).double()
    dice = torch.stack(
        [
            (2 * (p[b, k] * t[b, k]).sum() + SMOOTH) / (p[b, k].sum() + t[b, k].sum() + SMOOTH)
            for b in range(2)
            for k in range(1, 4)
        ]
    )
    cross_entropy = -(t * p.log()).sum(1).mean()
    expected = 1 - dice.mean() + cross_entropy
    assert loss(logits, label).item() == pytest.approx(expected.item(), abs=1e-5)


def test_region_loss_is_dice_of_squared_sigmoids_plus_binary_cross_entropy() -> None:
    loss, label, logits = losses()[1], random_label((0, 1, 2, 3), 0), random_logits(3)
    p = logits.sigmoid()
    t = torch.stack([(label == 1) | (label == 3), label > 0, label == 3], 1).double()
    dice = torch.stack(
        [
            (2 * (p[b, k] * t[b, k]).sum() + SMOOTH)
            / ((p[b, k] ** 2).sum() + (t[b, k] ** 2).sum() + SMOOTH)
            for b in range(2)
            for k in range(3)
        ]
    )
    cross_entropy = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    expected = 1 - dice.mean() + cross_entropy
    assert loss(logits, label).item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("loss", losses(), ids=["exclusive", "regions"])
@pytest.mark.parametrize("values", [(0, 1, 2, 3), (0, 3), (0,)], ids=["all", "some", "none"])
def test_a_perfect_prediction_costs_nothing(loss: SegmentationLoss, values: tuple[int]) -> None:
    label = random_label(values, 3)
    assert loss(certain_logits(loss, label), label).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("loss", losses(), ids=["exclusive", "regions"])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_gradients_are_finite_for_absent_classes(loss: SegmentationLoss, scale: float) -> None:
    logits = (scale * random_logits(loss.classes.channels)).requires_grad_()
    loss(logits, torch.zeros(2, 4, 5, 6, dtype=torch.uint8)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", losses(), ids=["exclusive", "regions"])
def test_the_loss_of_a_batch_is_the_mean_over_its_samples(loss: SegmentationLoss) -> None:
    label, logits = random_label((0, 1, 3), 5), random_logits(loss.classes.channels)
    single = [loss(logits[i : i + 1], label[i : i + 1]) for i in range(2)]
    assert loss(logits, label).item() == pytest.approx(sum(single).item() / 2, rel=1e-6)


@pytest.mark.parametrize("loss", losses(), ids=["exclusive", "regions"])
def test_deep_supervision_halves_the_weight_at_each_level(loss: SegmentationLoss) -> None:
    label = random_label((0, 1, 2, 3), 7)
    levels = [random_logits(loss.classes.channels)]
    levels += [levels[0][..., ::2, ::2, ::2], levels[0][..., :1, :1, :1]]
    expected = sum(
        weight * loss(logits, resize_label(label, logits.shape[2:])).item()
        for weight, logits in zip((4 / 7, 2 / 7, 1 / 7), levels, strict=True)
    )
    assert loss(levels, label).item() == pytest.approx(expected, rel=1e-6)


def test_labels_are_resized_without_new_values_and_keep_their_type() -> None:
    label = torch.zeros(1, 4, 4, 4, dtype=torch.int16)
    label[:, 2:] = 1000
    small = resize_label(label, (2, 3, 1))
    assert small.dtype == torch.int16
    assert small.shape == (1, 2, 3, 1)
    assert small[0, :, 0, 0].tolist() == [0, 1000]


@pytest.mark.parametrize("loss", losses(), ids=["exclusive", "regions"])
def test_half_precision_logits_are_summed_in_fp32(loss: SegmentationLoss) -> None:
    # 64^3 voxels: a sum in half precision would be off by far more than the tolerance.
    label = torch.ones(1, 64, 64, 64, dtype=torch.uint8)
    logits = torch.full((1, loss.classes.channels, 64, 64, 64), 0.5)
    expected = loss(logits, label)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(logits.bfloat16(), label)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("regions", [None, BRATS])
def test_padding_changes_nothing(regions: dict[str, tuple[int, ...]] | None) -> None:
    classes = build_loss(config(regions) if regions else config(), LABELS).classes
    plain, padded = SegmentationLoss(classes), SegmentationLoss(classes, padded=True)
    label, logits = random_label((0, 1, 2, 3), 0), random_logits(classes.channels)
    assert padded(logits, label) == pytest.approx(float(plain(logits, label)), rel=1e-6)
    wide, around = (1, 2, 0, 3, 2, 0), torch.nn.functional.pad
    wide_logits = around(logits, wide, value=7.0).requires_grad_()
    loss = padded(wide_logits, around(label, wide, value=PADDING))
    assert float(loss.detach()) == pytest.approx(float(plain(logits, label)), rel=1e-6)
    loss.backward()
    assert wide_logits.grad is not None
    outside = around(torch.zeros_like(logits), wide, value=1.0) > 0
    assert not wide_logits.grad[outside].any()
    assert wide_logits.grad[~outside].any()


@pytest.mark.parametrize("regions", [None, BRATS])
@pytest.mark.parametrize(
    "name", ["dice_ce", "dice_focal", "dice_topk", "dice_hausdorff", "tversky"]
)
def test_a_crop_in_which_no_voxel_counts_teaches_nothing(
    name: str, regions: dict[str, tuple[int, ...]] | None
) -> None:
    classes = build_loss(config(regions) if regions else config(), LABELS).classes
    loss = SegmentationLoss(classes, LossConfig(name=name), padded=True)
    logits = random_logits(classes.channels).requires_grad_()
    value = loss(logits, torch.full((2, 4, 5, 6), PADDING))
    assert value.isfinite()
    value.backward()
    assert logits.grad is not None
    assert not logits.grad.any()
