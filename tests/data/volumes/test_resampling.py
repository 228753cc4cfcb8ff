"""Cutting out a box and changing the voxel size, and the way back."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from scipy import ndimage

from segresmamba.data.volumes import geometry
from segresmamba.data.volumes.resampling import GridTransform, grid_transform, nonzero_box

SPACING = (2.0, 1.0, 1.5)
AFFINE = np.array([[1.5, 0, 0, 7], [0, 1, 0, -3], [0, 0, 2, 11], [0, 0, 0, 1.0]])

sizes = st.floats(0.5, 4)


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius_mm: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.linalg.norm((grid - centre) * SPACING, axis=-1) < radius_mm


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    wanted=st.none() | st.tuples(sizes, sizes, sizes),
    crop=st.booleans(),
    seed=st.integers(0, 99),
)
def test_voxels_stay_where_they_are_in_space(
    shape: tuple[int, int, int], wanted: tuple[float, float, float] | None, crop: bool, seed: int
) -> None:
    """A channel that grows linearly along an axis shows at each stored voxel where that lies."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    channels = [places[..., axis].astype(np.float32) + 1 for axis in range(3)]
    if crop:
        inside = tuple(slice(low := rng.integers(size), size) for size in shape)
        kept = np.zeros(shape, bool)
        kept[inside] = True
        channels = [np.where(kept, channel, 0) for channel in channels]
    transform = grid_transform(channels, SPACING, wanted, crop=crop)
    if transform is None:
        assert not crop or nonzero_box(channels) == tuple((0, size) for size in shape)
        return
    affine = transform.affine(AFFINE)
    if wanted is not None:
        np.testing.assert_allclose(geometry.spacing_mm(affine), wanted, rtol=2e-4)
    stored = np.stack(np.meshgrid(*map(np.arange, transform.shape_DHW), indexing="ij"), axis=-1)
    where_mm = apply_affine(affine, stored[..., ::-1].reshape(-1, 3))
    voxels = apply_affine(np.linalg.inv(AFFINE), where_mm)[:, ::-1]
    for axis, channel in enumerate(channels):
        low, high = transform.box_DHW[axis]
        expected = np.clip(voxels[:, axis], low, high - 1) + 1
        found = transform.image(channel).ravel()
        assert transform.image(channel).shape == transform.shape_DHW
        np.testing.assert_allclose(found, expected, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(zoom=st.tuples(sizes, sizes, sizes), seed=st.integers(0, 99))
def test_interpolation_is_that_of_scipy(zoom: tuple[float, float, float], seed: int) -> None:
    volume = np.random.default_rng(seed).normal(size=(9, 21, 8)).astype(np.float32)
    transform = grid_transform([volume], (1.0, 1.0, 1.0), zoom, crop=False)
    if transform is None:
        return
    zoom = transform.zoom_DHW  # 1 where it was next to 1
    offset = (np.array(volume.shape) - np.array(zoom) * (np.array(transform.shape_DHW) - 1) - 1) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy 0.18 meant something else by a vector
        expected = ndimage.affine_transform(
            volume, zoom, offset, transform.shape_DHW, order=1, mode="nearest"
        )
    np.testing.assert_allclose(transform.image(volume), expected, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    start=st.tuples(*[st.integers(0, 3)] * 3),
    shape=st.tuples(*[st.integers(4, 9)] * 3),
    seed=st.integers(0, 99),
)
def test_a_crop_comes_back_exactly(
    start: tuple[int, ...], shape: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    full = np.zeros((14, 14, 14), np.int16)
    box = tuple(slice(low, low + size) for low, size in zip(start, shape, strict=True))
    full[box] = rng.integers(1, 100, shape)
    label = np.zeros(full.shape, np.uint8)
    label[box] = rng.integers(0, 4, shape)
    transform = grid_transform([full, full], SPACING, None, crop=True)
    assert transform is not None
    assert not transform.resamples
    assert transform.label(label).shape == transform.shape_DHW == shape
    np.testing.assert_array_equal(transform.undo(transform.label(label)), label)


@pytest.mark.parametrize("wanted", [(1.0, 1.0, 1.0), (2.5, 1.2, 1.2), (1.0, 2.0, 1.5)])
def test_labels_come_back_to_within_a_voxel(wanted: tuple[float, float, float]) -> None:
    shape = (40, 70, 50)
    label = np.zeros(shape, np.uint8)
    label[ball(shape, (18, 36, 26), 25)] = 1
    label[ball(shape, (20, 30, 20), 9)] = 3
    transform = grid_transform([label], SPACING, wanted, crop=True)
    assert transform is not None
    back = transform.undo(transform.label(label))
    for value in (1, 3):
        found, expected = back == value, label == value
        assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.9
        near = ndimage.binary_dilation(expected, np.ones((3, 3, 3)))
        assert not (found & ~near).any()
    assert set(np.unique(back)) == {0, 1, 3}


def test_a_spacing_that_a_case_has_already_leaves_it_alone() -> None:
    volume = np.ones((5, 6, 7), np.int16)
    header_mm = tuple(np.float32(SPACING).astype(float) * (1 + 1e-6))
    assert grid_transform([volume], header_mm, SPACING, crop=True) is None


def test_a_transform_survives_json() -> None:
    transform = grid_transform([np.ones((5, 6, 7), np.int16)], SPACING, (1.1, 0.7, 3.0), crop=False)
    assert transform is not None
    assert GridTransform.model_validate_json(transform.model_dump_json()) == transform
