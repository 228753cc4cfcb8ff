from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from segresmamba.config import AugmentConfig, load_config
from segresmamba.data import Batch, augment, normalise
from segresmamba.data.stream import augmentation
from segresmamba.errors import ConfigError

OFF: dict[str, Any] = {
    name: 0 for name in AugmentConfig.model_fields if name.endswith("_probability")
}
ALWAYS: dict[str, Any] = dict.fromkeys(OFF, 1)
SHAPE = (9, 12, 10)


def batch_of(indices: list[int], shape: tuple[int, int, int] = SHAPE, channels: int = 2) -> Batch:
    """Samples that depend on their index alone."""
    rngs = [np.random.default_rng(index) for index in indices]
    images = [rng.normal(100, 20, (channels, *shape)).astype(np.float32) for rng in rngs]
    labels = [rng.integers(0, 3, shape).astype(np.uint8) for rng in rngs]
    return Batch(
        image_BCDHW=torch.from_numpy(np.stack(images)),
        normalisation_BC4=torch.tensor([-inf, inf, 90, 15]).expand(len(indices), channels, 4),
        label_BDHW=torch.from_numpy(np.stack(labels)),
        index_B=torch.tensor(indices),
        case_ids=tuple(map(str, indices)),
    )


def only(**changes: Any) -> AugmentConfig:
    return AugmentConfig(**(OFF | changes))


def label_as_image(batch: Batch) -> Batch:
    """The label in place of the image, unchanged by normalisation."""
    image_BCDHW = batch.label_BDHW[:, None].float()
    as_stored_BC4 = torch.tensor([-inf, inf, 0, 1]).expand(len(image_BCDHW), 1, 4)
    return replace(batch, image_BCDHW=image_BCDHW, normalisation_BC4=as_stored_BC4)


def test_probability_zero_only_normalises() -> None:
    batch = batch_of([0, 1, 2])
    x_BCDHW, label_BDHW = augment(batch, only(), 0)
    expected = normalise(batch.image_BCDHW, batch.normalisation_BC4)
    torch.testing.assert_close(x_BCDHW, expected, rtol=0, atol=0)
    torch.testing.assert_close(expected, (batch.image_BCDHW - 90) / 15)
    assert label_BDHW.dtype == torch.int64
    assert torch.equal(label_BDHW, batch.label_BDHW.long())


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    x_BCDHW = normalise(torch.ones(1, 1, 2, 2, 2), torch.tensor([[[-inf, inf, 1, 0]]]))
    assert torch.equal(x_BCDHW, torch.zeros(1, 1, 2, 2, 2))


def test_intensities_are_clipped_and_the_batch_is_left_alone() -> None:
    image_BCDHW = torch.tensor([-2000.0, -500, 0, 3000]).reshape(1, 1, 1, 1, 4)
    x_BCDHW = normalise(image_BCDHW, torch.tensor([[[-1000.0, 1000, 100, 50]]]))
    assert x_BCDHW.flatten().tolist() == [-22, -12, -2, 18]
    assert image_BCDHW.flatten().tolist() == [-2000, -500, 0, 3000]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), order=st.permutations([3, 14, 15, 92]), cut=st.integers(1, 3))
def test_a_sample_changes_the_same_in_any_batch(seed: int, order: list[int], cut: int) -> None:
    config = AugmentConfig(**dict.fromkeys(OFF, 0.5))
    x_BCDHW, label_BDHW = augment(batch_of([3, 14, 15, 92]), config, seed)
    place = {index: number for number, index in enumerate([3, 14, 15, 92])}
    for part in (order[:cut], order[cut:]):
        x, label = augment(batch_of(part), config, seed)
        at = [place[index] for index in part]
        torch.testing.assert_close(x, x_BCDHW[at], rtol=1e-5, atol=1e-5)
        assert torch.equal(label, label_BDHW[at])


def test_a_later_version_augments_the_crops_of_a_run_as_before() -> None:
    """What the default preset made of one voxel of each crop before there were other transforms."""
    voxel_B = augment(batch_of(list(range(8))), AugmentConfig(), 0)[0][:, 0, 4, 6, 5]
    expected = [-0.3757, 1.72009, 1.11232, 0.66463, 2.44708, 0.30033, -1.56025, -0.56005]
    torch.testing.assert_close(voxel_B, torch.tensor(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "key",
    ["scaling_range", "blur_sigma", "contrast_range", "low_resolution_range", "gamma_range"],
)
def test_a_range_that_descends_is_refused(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([f"augment.{key}=[0.9,0.8]"])
    assert caught.value.where == f"augment.{key}"
    assert "[0.8,0.9]" in caught.value.remedy


def test_a_crop_that_is_thinner_than_the_blur_is_blurred() -> None:
    config = only(blur_probability=1, channel_probability=1, blur_sigma=(2, 2))
    batch = batch_of([0], (1, 12, 12), channels=1)
    x_BCDHW, _ = augment(batch, config, 0)
    plain = normalise(batch.image_BCDHW, batch.normalisation_BC4)
    assert x_BCDHW.isfinite().all()
    assert x_BCDHW.std() < 0.5 * plain.std()


def test_the_input_is_left_as_it_was() -> None:
    batch, untouched = batch_of([0, 1]), batch_of([0, 1])
    augment(batch, AugmentConfig(**ALWAYS), 0)
    assert torch.equal(batch.image_BCDHW, untouched.image_BCDHW)
    assert torch.equal(batch.label_BDHW, untouched.label_BDHW)


def test_seeds_and_samples_differ() -> None:
    config = only(intensity_shift_probability=1)
    same = batch_of([0, 0])
    first, second = (
        augment(replace(same, index_B=torch.tensor(indices)), config, seed)[0]
        for indices, seed in (([0, 1], 0), ([0, 1], 1))
    )
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first[0], second[0])


def test_one_setting_does_not_change_what_another_does() -> None:
    flips_alone = augment(batch_of([0, 1, 2]), only(flip_probability=0.5), 0)[1]
    with_others = augment(
        batch_of([0, 1, 2]), only(flip_probability=0.5, gamma_probability=1, noise_probability=1), 0
    )[1]
    assert torch.equal(flips_alone, with_others)


def test_flips_take_image_and_label_along_all_axes() -> None:
    batch = batch_of(list(range(30)))
    x_BCDHW, label_BDHW = augment(label_as_image(batch), only(flip_probability=0.5), 0)
    assert torch.equal(x_BCDHW[:, 0].long(), label_BDHW)
    seen = set()
    for before, after in zip(batch.label_BDHW.long(), label_BDHW, strict=True):
        axes = [
            axes
            for axes in ([], [0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2])
            if torch.equal(before.flip(axes), after)
        ]
        assert len(axes) == 1
        seen.add(tuple(axes[0]))
    assert len(seen) == 8


def test_no_axis_is_mirrored_or_turned_about_but_those_that_are_named() -> None:
    label_BDHW = batch_of([0]).label_BDHW.clone()
    config = only(flip_probability=1, flip_axes=("D", "H"))
    assert torch.equal(augment(batch_of([0]), config, 0)[1], label_BDHW.flip(1, 2))
    # What turns about D alone moves nothing from slice to slice.
    slices_BDHW = torch.arange(SHAPE[0])[None, :, None, None].expand(1, *SHAPE)
    batch = replace(batch_of([0]), label_BDHW=slices_BDHW.to(torch.uint8))
    config = only(affine_probability=1, rotation_degrees=30, scale_range=0)
    assert not torch.equal(augment(batch, config, 0)[1], slices_BDHW)
    config = config.model_copy(update={"rotation_axes": ("D",)})
    assert torch.equal(augment(batch, config, 0)[1], slices_BDHW)
    turned_BDHW = augment(batch_of([0]), config, 1)[1]
    assert not torch.equal(turned_BDHW, batch_of([0]).label_BDHW)


def test_image_and_label_stay_aligned_under_affine() -> None:
    """A label of large boxes given as image too: away from edges, both must agree."""
    blocks = np.kron(np.arange(27).reshape(3, 3, 3) % 4, np.ones((8, 8, 8))).astype(np.uint8)
    batch = batch_of([0, 1, 2], (24, 24, 24))
    batch = replace(batch, label_BDHW=torch.from_numpy(np.stack([blocks] * 3)))
    x_BCDHW, label_BDHW = augment(label_as_image(batch), only(affine_probability=1), 0)
    assert not torch.equal(label_BDHW, batch.label_BDHW.long())
    assert set(label_BDHW.unique().tolist()) == {0, 1, 2, 3}
    apart = (x_BCDHW[:, 0] - label_BDHW).abs()
    certain = apart < 1e-3
    assert certain.float().mean() > 0.5
    # Bilinear and nearest differ at edges alone, where neighbours differ by up to 3.
    assert (apart[~certain] <= 3).all()
    rounded = x_BCDHW[:, 0].round().long()
    assert (rounded == label_BDHW).float().mean() > 0.9


def test_a_rotation_is_that_of_scipy() -> None:
    angles_3, scale_3 = np.array([12.0, -25.0, 70.0]), np.array([0.9, 1.0, 1.2])
    expected = Rotation.from_euler("xyz", angles_3, degrees=True).as_matrix() / scale_3
    np.testing.assert_allclose(augmentation._matrix(angles_3, scale_3), expected, atol=1e-15)


def test_the_affine_is_a_rotation_about_the_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against SciPy, on a patch whose sides differ."""
    from segresmamba.data.stream import augmentation

    matrix = Rotation.from_euler("xyz", [10, -20, 30], degrees=True).as_matrix() / 1.2
    monkeypatch.setattr(augmentation, "_matrix", lambda *_: matrix)
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(20, 24, 16)), 2)
    batch = label_as_image(batch_of([0], (20, 24, 16), channels=1))
    batch = replace(batch, image_BCDHW=torch.from_numpy(smooth[None, None].astype(np.float32)))
    x_BCDHW, _ = augment(batch, only(affine_probability=1), 0)
    centre = (np.array(smooth.shape) - 1) / 2
    offset = centre - matrix @ centre
    expected = ndimage.affine_transform(smooth, matrix, offset, order=1, mode="nearest")
    np.testing.assert_allclose(x_BCDHW[0, 0].numpy(), expected, atol=1e-5)


def test_scale_and_shift_stay_in_range() -> None:
    batch = batch_of(list(range(50)))
    plain = normalise(batch.image_BCDHW, batch.normalisation_BC4)
    config = only(intensity_scale_probability=1, intensity_scale_range=0.2)
    factor = (augment(batch, config, 0)[0] / plain).flatten(2)
    assert (factor.amax(2) - factor.amin(2)).max() < 1e-4  # one per channel
    assert 0.8 <= factor.min() < 0.85
    assert 1.15 < factor.max() <= 1.2
    config = only(intensity_shift_probability=1, intensity_shift_range=0.3)
    offset = (augment(batch, config, 0)[0] - plain).flatten(2)
    assert (offset.amax(2) - offset.amin(2)).max() < 1e-4
    assert -0.3 <= offset.min() < -0.25
    assert 0.25 < offset.max() <= 0.3


def test_gamma_keeps_the_range_and_the_order_of_intensities() -> None:
    batch = batch_of([0, 1, 2])
    plain = normalise(batch.image_BCDHW, batch.normalisation_BC4).flatten(2)
    bent = augment(batch, only(gamma_probability=1), 0)[0].flatten(2)
    assert not torch.allclose(plain, bent, atol=1e-2)
    torch.testing.assert_close(plain.amin(2), bent.amin(2))
    torch.testing.assert_close(plain.amax(2), bent.amax(2))
    ordered = bent.gather(2, plain.argsort(2))
    assert (ordered.diff(dim=2) >= -1e-5).all()


def test_noise_is_normal_and_bounded_in_strength() -> None:
    batch = batch_of(list(range(40)), channels=1)
    plain = normalise(batch.image_BCDHW, batch.normalisation_BC4)
    noise = (augment(batch, only(noise_probability=1, noise_std=0.1), 0)[0] - plain).flatten(1)
    strength = noise.std(dim=1)
    assert strength.max() < 0.105
    assert strength.min() < 0.02
    assert noise.mean().abs() < 0.002


def test_a_probability_is_that_of_a_sample() -> None:
    batch = batch_of(list(range(400)), (3, 3, 3), channels=1)
    plain = normalise(batch.image_BCDHW, batch.normalisation_BC4)
    changed = augment(batch, only(noise_probability=0.25), 0)[0] != plain
    assert 65 < changed.flatten(1).any(dim=1).sum() < 135  # 100, four standard deviations
