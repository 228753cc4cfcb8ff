"""The losses agree with MONAI's, and leave out exactly what does not count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss, FocalLoss, LogHausdorffDTLoss, TverskyLoss
from torch import Tensor
from torch.nn import functional as F

from segresmamba.config import LossConfig, load_config
from segresmamba.data.stream.batch import PADDING
from segresmamba.errors import ConfigError
from segresmamba.task.classes import Classes
from segresmamba.task.losses import SegmentationLoss
from tests.task.test_classes import BRATS, LABELS, config, random_label
from tests.task.test_losses import certain_logits, random_logits

NAMES = ("dice_ce", "dice_focal", "dice_topk", "dice_hausdorff", "tversky")
CLASSES = {
    "exclusive": Classes.from_labels(config(), LABELS),
    "regions": Classes.from_labels(config(BRATS), LABELS),
}
WEIGHTS = {"background": 0.5, "oedema": 3.0}


def loss_of(name: str, kind: str = "exclusive", *, padded: bool = False, **keys: Any) -> Any:
    if name == "dice_hausdorff":
        keys |= {"hausdorff_warmup_steps": 0}
    return SegmentationLoss(CLASSES[kind], LossConfig(name=name, **keys), padded=padded)  # type: ignore[arg-type]


SMOOTH = {"smooth_nr": 1e-5, "smooth_dr": 1e-5}
SOFTMAX: dict[str, Any] = {"softmax": True, "to_onehot_y": True, "include_background": False}


def monai(name: str, logits: Tensor, label: Tensor, weights: Tensor | None) -> Tensor:
    """The same loss of exclusive labels, put together from MONAI's."""
    foreground = None if weights is None else weights[1:]
    dice = DiceLoss(**SOFTMAX, **SMOOTH, weight=foreground)
    both = DiceCELoss(**SOFTMAX, **SMOOTH, weight=weights)
    label = label[:, None].long()
    match name:
        case "dice_ce":
            return both(logits, label)
        case "dice_focal":
            focal = FocalLoss(use_softmax=True, to_onehot_y=True, weight=weights)
            return dice(logits, label) + focal(logits, label)
        case "dice_hausdorff":
            distances = LogHausdorffDTLoss(**SOFTMAX, reduction="none")(logits, label)[..., 0, 0, 0]
            factors = torch.ones(3) if foreground is None else foreground
            return both(logits, label) + 0.1 * (distances * factors).mean()
        case _:
            per_class = TverskyLoss(
                **SOFTMAX, **SMOOTH, alpha=0.3, beta=0.7, reduction="none"
            )(logits, label)  # fmt: skip
            return (per_class * (1 if foreground is None else foreground)).mean()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "dice_topk"])
def test_the_losses_are_those_of_monai(name: str, weighted: bool) -> None:
    logits, label = 3 * random_logits(4), random_label((0, 1, 2, 3), 0)
    keys = {"class_weights": WEIGHTS} if weighted else {}
    expected = monai(name, logits, label, torch.tensor([0.5, 1, 3, 1]) if weighted else None)
    assert loss_of(name, **keys)(logits, label).item() == pytest.approx(float(expected), rel=1e-5)


def test_top_k_is_the_mean_of_the_largest_cross_entropies_of_each_sample() -> None:
    logits, label = random_logits(4), random_label((0, 1, 2, 3), 0)
    values = F.cross_entropy(logits, label, reduction="none").flatten(1)
    hardest = values.sort(descending=True).values[:, :12].mean()  # 10 % of 4 x 5 x 6
    plain = loss_of("dice_ce")(logits, label) - F.cross_entropy(logits, label)
    found = loss_of("dice_topk")(logits, label)
    assert float(found) == pytest.approx(float(plain + hardest), rel=1e-6)
    whole = loss_of("dice_topk", top_k=1.0)(logits, label)
    assert float(whole) == pytest.approx(float(loss_of("dice_ce")(logits, label)), rel=1e-6)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing_in_any_loss(name: str, kind: str) -> None:
    weights = {"oedema": 3.0} if kind == "exclusive" else {"WT": 3.0}
    plain = loss_of(name, kind, class_weights=weights)
    padded = loss_of(name, kind, class_weights=weights, padded=True)
    label, logits = random_label((0, 1, 2, 3), 0), random_logits(CLASSES[kind].channels)
    wide = (1, 2, 0, 3, 2, 0)
    wide_logits = F.pad(logits, wide, value=7.0).requires_grad_()
    loss = padded(wide_logits, F.pad(label, wide, value=PADDING))
    assert float(loss.detach()) == pytest.approx(float(plain(logits, label)), rel=1e-5)
    loss.backward()
    assert wide_logits.grad is not None
    outside = F.pad(torch.zeros_like(logits), wide, value=1.0) > 0
    assert not wide_logits.grad[outside].any()
    assert wide_logits.grad[~outside].isfinite().all()
    assert wide_logits.grad[~outside].any()


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_prediction_costs_nothing_and_absent_classes_have_finite_gradients(
    name: str, kind: str
) -> None:
    loss, label = loss_of(name, kind), random_label((0, 1, 2, 3), 3)
    logits = certain_logits(loss, label)
    assert loss(logits, label).item() == pytest.approx(0, abs=1e-3)
    logits = (100 * random_logits(CLASSES[kind].channels)).requires_grad_()
    loss(logits, torch.zeros(2, 4, 5, 6, dtype=torch.uint8)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_crop_in_which_all_voxels_weigh_0_has_a_finite_loss(name: str, padded: bool) -> None:
    loss = loss_of(name, padded=padded, class_weights={"background": 0.0})
    logits = random_logits(4).requires_grad_()
    loss(logits, torch.zeros(2, 4, 5, 6, dtype=torch.uint8)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_weights_that_are_all_0_are_refused() -> None:
    with pytest.raises(ConfigError, match="no class would be trained"):
        loss_of("dice_ce", class_weights=dict.fromkeys(CLASSES["exclusive"].channel_names, 0.0))


def test_the_weight_of_the_boundary_rises_from_0() -> None:
    loss = SegmentationLoss(
        CLASSES["exclusive"], LossConfig(name="dice_hausdorff", hausdorff_warmup_steps=10)
    )
    label, logits = random_label((0, 1, 2, 3), 0), random_logits(4)
    found = []
    for loss.step in (0, 5, 10, 20):
        found.append(float(loss(logits, label)))
    none, half, full, later = found
    assert none == pytest.approx(float(loss_of("dice_ce")(logits, label)))
    assert half - none == pytest.approx((full - none) / 2, rel=1e-4)
    assert full == later > none


def test_levels_without_a_weight_do_not_count_and_weights_without_a_level_are_refused() -> None:
    label, logits = random_label((0, 1, 2, 3), 0), random_logits(4)
    levels = [logits, random_logits(4, seed=2)[..., ::2, ::2, ::2], logits[..., :1, :1, :1]]
    loss = loss_of("dice_ce", deep_supervision=(3.0, 1.0))
    single = loss_of("dice_ce")
    small = label[:, ::2, ::2, ::2]
    two = loss(levels, label)
    assert float(two) != float(single(levels, label))
    assert loss_of("dice_ce", deep_supervision=(2.0,))(levels, label) == single(logits, label)
    assert small.shape[1:] == levels[1].shape[2:]
    with pytest.raises(ConfigError, match="more weights than outputs"):
        loss(logits, label)


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["loss.top_k=0.2"], "loss.top_k"),
        (["loss=tversky", "loss.focal_gamma=1.0"], "loss.focal_gamma"),
        (["loss.deep_supervision=[0.0]"], "loss.deep_supervision"),
    ],
)
def test_a_setting_that_would_not_count_is_refused(words: list[str], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(words)
    assert caught.value.where == where


def test_a_weight_of_an_unknown_class_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"liver.*background, necrosis, oedema, enhancing"):
        loss_of("dice_ce", class_weights={"liver": 2.0})
