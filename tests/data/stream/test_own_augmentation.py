"""Changes of another package: reproducible by seed and crop number, refused with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segresmamba.config import AugmentConfig
from segresmamba.data import augment
from segresmamba.errors import ConfigError
from tests.data.stream.test_augmentation import OFF, batch_of


class Shift:
    """Adds a random number to the image and another to the label."""

    def __init__(self, strength: float = 1.0, label: int = 1) -> None:
        self.strength, self.label = strength, label

    def __call__(
        self, image_CDHW: Tensor, label_DHW: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        return image_CDHW + self.strength * rng.random(), label_DHW + self.label


def cropping() -> Any:
    return lambda image, label, rng: (image[:, 1:], label[1:])


def image_alone() -> Any:
    return lambda image, label, rng: image


def number() -> int:
    return 3


def config_of(name: str, **kwargs: Any) -> AugmentConfig:
    return AugmentConfig(**OFF, target=f"{__name__}:{name}", kwargs=kwargs)


def test_it_changes_a_sample_by_seed_and_number_alone() -> None:
    batch = batch_of([3, 14, 15])
    plain, label_BDHW = augment(batch, AugmentConfig(**OFF), 0)
    x_BCDHW, changed_BDHW = augment(batch, config_of("Shift", strength=2.0), 0)
    assert torch.equal(changed_BDHW, label_BDHW + 1)
    offset_B = (x_BCDHW - plain).mean((1, 2, 3, 4))
    assert len({round(offset, 4) for offset in offset_B.tolist()}) == 3
    assert 0 < offset_B.min() < offset_B.max() < 2
    alone, _ = augment(batch_of([14]), config_of("Shift", strength=2.0), 0)
    assert torch.equal(alone[0], x_BCDHW[1])
    other, _ = augment(batch, config_of("Shift", strength=2.0), 1)
    assert not torch.allclose(other, x_BCDHW)


def test_it_comes_after_the_changes_of_the_preset() -> None:
    batch = batch_of([0, 1])
    mirrored = AugmentConfig(**OFF | {"flip_probability": 1.0})
    own = mirrored.model_copy(update={"target": f"{__name__}:Shift"})
    assert torch.equal(augment(batch, own, 0)[1], augment(batch, mirrored, 0)[1] + 1)


@pytest.mark.parametrize(
    ("name", "kwargs", "text"),
    [
        ("NoSuch", {}, "has no attribute 'NoSuch'"),
        ("Shift", {"width": 3}, "unexpected keyword argument 'width'"),
        ("number", {}, "made int, which cannot be called"),
        ("cropping", {}, "(2, 8, 12, 10)"),
        ("image_alone", {}, "returned"),
    ],
)
def test_what_does_not_work_is_refused(name: str, kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        augment(batch_of([0]), config_of(name, **kwargs), 0)
    assert text in str(caught.value.got)
    assert str(caught.value.where).startswith("augment.target")
