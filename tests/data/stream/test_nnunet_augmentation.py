"""`augment=nnunet` changes crops as strongly, and as often, as nnU-Net does.

The reference distributions were measured on nnU-Net's own transforms, see
benchmarks/augmentation_parity.py. Both sides are seeded, so that nothing here depends on chance.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import inf
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.augmentation_parity import RESULTS, below, measure, phantom
from segresmamba.config import AugmentConfig, load_config
from segresmamba.data import Batch, augment

PRESETS = ("nnunet", "nnunet_thick_slices")
REFERENCE: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text())
OFF: dict[str, Any] = {
    name: 0.0
    for name in AugmentConfig.model_fields
    if name.endswith("_probability") and name != "channel_probability"
}
SETTINGS = {"brightness": ["intensity_scale"], "spatial": ["rotation", "scaling"]}
SAMPLES = 500
# The largest gap between the distribution functions of so many values and of the reference is
# above this by chance in fewer than one of 10,000 seeds.
GAP = 2.3 / SAMPLES**0.5


def preset(name: str) -> AugmentConfig:
    return load_config([f"augment={name}"]).augment


def changed(x_CDHW: Tensor, config: AugmentConfig) -> Iterator[Tensor]:
    """What augmentation makes of a crop, again and again."""
    chunk = 50
    for first in range(0, SAMPLES, chunk):
        batch = Batch(
            image_BCDHW=x_CDHW.expand(chunk, *x_CDHW.shape),
            normalisation_BC4=torch.tensor([-inf, inf, 0, 1]).expand(chunk, len(x_CDHW), 4),
            label_BDHW=torch.zeros(chunk, *x_CDHW.shape[1:], dtype=torch.uint8),
            index_B=torch.arange(first, first + chunk),
            case_ids=("phantom",) * chunk,
        )
        yield from augment(batch, config, seed=0)[0]


CASES = [
    *(("nnunet", transform) for transform in REFERENCE["nnunet"]["distributions"]),
    # The others have the same settings in both presets.
    *(("nnunet_thick_slices", transform) for transform in ("spatial", "low_resolution")),
]


@pytest.mark.parametrize(("name", "transform"), CASES)
def test_each_transform_has_the_distribution_of_nnunets(name: str, transform: str) -> None:
    made = {f"{one}_probability": 1.0 for one in SETTINGS.get(transform, [transform])}
    config = preset(name).model_copy(update=OFF | made)
    x_CDHW = phantom(transform)
    found = measure(transform, x_CDHW, changed(x_CDHW, config))
    expected = REFERENCE[name]["distributions"][transform]
    assert found.keys() == expected.keys()
    for number, values in found.items():
        at, share = np.array(expected[number]["at"]), np.array(expected[number]["below"])
        if at[-1] - at[0] < 1e-3:  # a number that the transform leaves alone
            np.testing.assert_allclose(values, at.mean(), atol=2e-3)
        else:
            assert np.abs(below(values, at) - share).max() < GAP, number


@pytest.mark.parametrize("name", PRESETS)
def test_each_transform_is_as_frequent_as_nnunets(name: str) -> None:
    config = preset(name)
    for transform, probability in REFERENCE[name]["probabilities"].items():
        (setting,) = SETTINGS.get(transform, [transform])
        assert getattr(config, f"{setting}_probability") == probability
    others = OFF.keys() - {
        f"{SETTINGS.get(one, [one])[0]}_probability" for one in REFERENCE[name]["probabilities"]
    }
    assert {getattr(config, one) for one in others - {"flip_probability"}} == {0}
    assert config.flip_probability == 0.5


def test_the_thick_slices_of_a_crop_stay_apart() -> None:
    """A crop whose slices hold their own number: nothing comes from another slice."""
    config = preset("nnunet_thick_slices").model_copy(
        update=OFF | {"rotation_probability": 1.0, "scaling_probability": 1.0}
    )
    config = config.model_copy(update={"low_resolution_probability": 1.0})
    slices_CDHW = torch.arange(6.0)[None, :, None, None].expand(2, 6, 12, 12)
    for after_CDHW in list(changed(slices_CDHW, config))[:50]:
        torch.testing.assert_close(after_CDHW, slices_CDHW, atol=1e-4, rtol=0)
