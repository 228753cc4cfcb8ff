"""Labels and probabilities are those of a plain implementation that holds everything whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segresmamba.data.volumes.resampling import GridTransform, grid_transform
from segresmamba.errors import DataError, warn_once
from segresmamba.inference.segmentation import segment_volume
from segresmamba.inference.sliding_window import Member, SlidingWindow
from segresmamba.task.classes import Classes
from tests.inference import plain

CPU = torch.device("cpu")
BOUNDS_C4 = np.array([[-np.inf, np.inf, 40, 20], [5, 90, 50, 30]], np.float32)
LABELS = Classes({"a": (1,), "b": (3,)}, (0, 1, 3), exclusive=True)
REGIONS = Classes({"whole": (1, 3), "core": (3,)}, (0, 1, 3), exclusive=False)


def network(seed: int, classes: Classes) -> nn.Module:
    """A network that sees a border where a window ends."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv3d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, classes.channels, 3, padding=1)
        ).requires_grad_(requires_grad=False)


class Planes:
    """Keeps probabilities as they come."""

    def __init__(self, classes: Classes, shape_DHW: tuple[int, ...]) -> None:
        self.all_KDHW = np.zeros((classes.channels, *shape_DHW), np.float32)
        if classes.exclusive:
            self.all_KDHW[0] = 1
        self.depths: list[int] = []

    def __call__(self, depth: int, rows: slice, columns: slice, probabilities_KHW: Any) -> None:
        self.depths.append(depth)
        self.all_KDHW[:, depth, rows, columns] = probabilities_KHW.numpy()


sizes = st.integers(3, 18)
shapes = st.tuples(sizes, sizes, sizes)


@st.composite
def volumes(draw: st.DrawFn) -> Any:
    """A volume whose outermost slices may be zero."""
    shape = draw(shapes)
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    image = rng.uniform(1, 100, (2, *shape)).astype(draw(st.sampled_from([np.float32, np.int16])))
    for axis, size in enumerate(shape, start=1):
        first = draw(st.integers(0, size - 1))
        last = draw(st.integers(first, size - 1))
        inside = np.arange(size).reshape([-1 if one == axis else 1 for one in range(4)])
        image *= ((inside >= first) & (inside <= last)).astype(image.dtype)
    return image


@st.composite
def ways(draw: st.DrawFn, shape: tuple[int, ...]) -> GridTransform | None:
    """How the volume's grid lies in that of its files."""
    if draw(st.booleans()):
        return None
    zoom = [draw(st.sampled_from([1.0, 0.6, 1.7])) for _ in range(3)]
    box_sizes = [max(1, round(size * step)) for size, step in zip(shape, zoom, strict=True)]
    before = [draw(st.integers(0, 2)) for _ in range(3)]
    return GridTransform(
        full_DHW=[a + b + 1 for a, b in zip(before, box_sizes, strict=True)],
        box_DHW=[(a, a + b) for a, b in zip(before, box_sizes, strict=True)],
        shape_DHW=shape,
        zoom_DHW=zoom,
    )


@settings(max_examples=60)
@given(st.data())
def test_the_result_is_that_of_the_plain_implementation(given_: st.DataObject) -> None:
    draw = given_.draw
    image = draw(volumes())
    classes = draw(st.sampled_from([LABELS, REGIONS]))
    patch = st.tuples(*[st.integers(3, 9)] * 3)
    members = [(network(seed, classes), draw(patch)) for seed in range(draw(st.integers(1, 2)))]
    mirror = draw(st.sampled_from([(), (0,), (1, 2)]))
    overlap = draw(st.sampled_from([0.0, 0.3, 0.5, 0.7]))
    transform = draw(ways(image.shape[1:]))
    sliding = SlidingWindow(
        [Member(one, size, "fp32", mirror) for one, size in members],
        device=CPU,
        overlap=overlap,
        window_batch=draw(st.integers(1, 3)),
    )
    full = transform.full_DHW if transform else image.shape[1:]
    planes = Planes(classes, full)
    seen: list[tuple[int, int]] = []
    found = segment_volume(
        sliding, classes, image, BOUNDS_C4, transform=transform, probabilities=planes,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip

    box = plain.nonzero(image)
    logits = torch.from_numpy(plain.logits(members, image, BOUNDS_C4, overlap, mirror))
    label, sure = decoded(classes, logits)
    np.testing.assert_array_equal(found.label_DHW[box][sure], label[sure])
    outside = np.ones(image.shape[1:], bool)
    outside[box] = False
    assert not found.label_DHW[outside].any()

    expected = classes.probabilities(logits)
    if transform:
        values, corners, known = plain.on_the_files_grid(expected.numpy(), box, transform)
        expected = torch.from_numpy(values)
        label, sure = decoded(classes, torch.logit(expected, eps=1e-6))
        around = np.stack([decoded(classes, torch.logit(torch.from_numpy(c)))[0] for c in corners])
        agreed = (around == around[0]).all(0)
        label[agreed] = around[0][agreed]
        label, sure = label[known], sure[known]
    else:
        known, label, sure = ~outside, label.ravel(), sure.ravel()
    values_KN = (
        expected.numpy()[:, known] if transform else expected.numpy().reshape(len(logits), -1)
    )
    np.testing.assert_allclose(planes.all_KDHW[:, known], values_KN, atol=1e-4)
    np.testing.assert_array_equal(found.full_DHW[known][sure], label[sure])
    assert not found.full_DHW[~known].any()
    background = np.zeros((classes.channels, 1))
    background[0] = classes.exclusive
    assert (planes.all_KDHW[:, ~known] == background).all()
    assert planes.depths == sorted(set(planes.depths))
    assert seen[-1][0] == seen[-1][1]


def decoded(classes: Classes, logits_KDHW: torch.Tensor) -> tuple[Any, Any]:
    """Labels, and where rounding cannot decide which of them is best."""
    scores = logits_KDHW.numpy()
    if not classes.exclusive:
        codes = [[v in m for m in classes.members.values()] for v in classes.values]
        scores = np.einsum("vk,kdhw->vdhw", np.array(codes, float), scores)
    best = np.sort(scores, axis=0)
    labels = np.array(classes.values)[scores.argmax(0)]
    return labels, best[-1] - best[-2] > 1e-3


@pytest.mark.parametrize("window_batch", [1, 2, 5])
def test_labels_do_not_depend_on_the_window_batch(window_batch: int) -> None:
    image = np.random.default_rng(0).uniform(1, 100, (2, 15, 14, 13)).astype(np.float32)
    transform = grid_transform(list(image), (1.0, 1.0, 1.0), (1.4, 0.8, 1.0), crop=False)
    assert transform
    stored = np.stack([transform.image(channel) for channel in image])

    def segment(batch: int) -> Any:
        members = [Member(network(0, LABELS), (6, 7, 8), "fp32")]
        sliding = SlidingWindow(members, device=CPU, overlap=0.5, window_batch=batch)
        return segment_volume(sliding, LABELS, stored, BOUNDS_C4, transform=transform)

    assert np.array_equal(segment(window_batch).full_DHW, segment(1).full_DHW)
    assert segment(1).full_DHW.shape == image.shape[1:]
    assert len(np.unique(segment(1).full_DHW)) == 3


def test_a_volume_of_zeros_is_background_and_nothing_is_computed() -> None:
    members = [Member(nn.Identity(), (4, 4, 4), "fp32")]
    sliding = SlidingWindow(members, device=CPU, overlap=0.5, window_batch=1)
    found = segment_volume(sliding, LABELS, np.zeros((2, 5, 6, 7), np.int16), BOUNDS_C4)
    assert found.full_DHW.shape == (5, 6, 7)
    assert not found.full_DHW.any()


def test_an_output_that_is_not_finite_is_refused() -> None:
    class Overflows(nn.Module):
        def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
            return (1e30 * x_BCDHW[:, :1]).repeat(1, 3, 1, 1, 1).square()

    sliding = SlidingWindow(
        [Member(Overflows(), (4, 4, 4), "fp32")], device=CPU, overlap=0.5, window_batch=1
    )
    image = np.random.default_rng(0).uniform(1, 100, (2, 5, 6, 7)).astype(np.float32)
    with pytest.raises(DataError, match=r"not finite.*slices, rows, columns 0 to .*fp32"):
        segment_volume(sliding, LABELS, image, BOUNDS_C4)


@pytest.mark.parametrize("where", ["decode", "probabilities"])
def test_logits_too_large_to_decode_on_the_device_are_decoded_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    rng = np.random.default_rng(0)
    image_CDHW = rng.uniform(1, 100, (2, 9, 8, 7)).astype(np.float32)
    transform = grid_transform(list(image_CDHW), (1.0, 1.0, 1.0), (1.4, 0.8, 1.0), crop=False)
    assert transform
    image_CDHW = np.stack([transform.image(channel) for channel in image_CDHW])
    member = Member(network(0, LABELS), (8, 8, 8), "fp32")
    sliding = SlidingWindow([member], device=CPU, overlap=0.5, window_batch=1)
    plainly = segment_volume(sliding, LABELS, image_CDHW, BOUNDS_C4, transform=transform)
    works, calls = getattr(Classes, where), 0

    def full(self: Classes, values: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
        result: torch.Tensor = works(self, values)
        return result

    warn_once.cache_clear()
    monkeypatch.setattr(Classes, where, full)
    found = segment_volume(sliding, LABELS, image_CDHW, BOUNDS_C4, transform=transform)
    np.testing.assert_array_equal(found.full_DHW, plainly.full_DHW)
    assert caplog.text.count("decoding them on the CPU") == 1
