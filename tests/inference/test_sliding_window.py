from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segresmamba import data
from segresmamba.config import load_config
from segresmamba.inference import sliding_window
from segresmamba.inference.sliding_window import Member, SlidingWindow, _Sums, evaluating
from segresmamba.inference.windows import WindowGrid

CPU = torch.device("cpu")
BOUNDS_C4 = np.array([[-np.inf, np.inf, 50, 20], [2, 4, 3, 0.5]], np.float32)
PATCH = (8, 10, 6)


class Probe(nn.Module):
    """Gives its input back, and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.windows: list[Tensor] = []

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        self.windows.append(x_BCDHW)
        return x_BCDHW * self.scale


def image(*shape_DHW: int, dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(0)
    return rng.uniform(1, 100, (2, *shape_DHW)).astype(dtype)


def predict(
    network: nn.Module,
    image_CDHW: Any,
    *,
    precision: str = "fp32",
    overlap: float = 0.5,
    window_batch: int = 1,
) -> Tensor:
    """The logits of a whole volume."""
    sliding = SlidingWindow(
        [Member(network, PATCH, precision)],
        device=CPU,
        overlap=overlap,
        window_batch=window_batch,
    )
    whole: Any = tuple((0, size) for size in image_CDHW.shape[1:])
    with evaluating(network):
        bricks = list(sliding.bricks(image_CDHW, BOUNDS_C4, whole))
    logits = torch.full((len(bricks[0].logits_KDHW), *image_CDHW.shape[1:]), torch.nan)
    for brick in bricks:
        place = (slice(None), *(slice(*span) for span in brick.box))
        assert logits[place].isnan().all()
        logits[place] = brick.logits_KDHW
    return logits


@pytest.mark.parametrize("shape", [PATCH, (19, 23, 17), (5, 23, 4), (3, 3, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
@pytest.mark.parametrize("options", [{"overlap": 0.0}, {"overlap": 0.6, "window_batch": 3}])
def test_windows_are_stitched_to_the_network_s_output_for_the_normalised_volume(
    shape: tuple[int, int, int], dtype: Any, options: dict[str, Any]
) -> None:
    raw = image(*shape, dtype=dtype)
    logits = predict(Probe(), raw, **options)
    expected = data.normalise(torch.from_numpy(raw).float()[None], torch.tensor(BOUNDS_C4)[None])
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-4)


def test_every_window_has_the_patch_s_size_and_the_network_sees_at_most_window_batch() -> None:
    network = Probe()
    predict(network, image(19, 5, 17), window_batch=4)
    assert {window.shape[2:] for window in network.windows} == {PATCH}
    assert max(len(window) for window in network.windows) == 4


def test_a_small_volume_is_extended_by_its_outermost_voxels() -> None:
    network = Probe()
    predict(network, image(3, 10, 6))
    (window,) = network.windows  # 2 voxels before, 3 after
    for depth, neighbour in enumerate([2, 2, 2, 3, 4, 4, 4, 4]):
        assert torch.equal(window[:, :, depth], window[:, :, neighbour])


class WindowNumber(Probe):
    def forward(self, x_BCDHW: Tensor) -> Tensor:
        self.windows.append(x_BCDHW)
        return torch.full_like(x_BCDHW, float(len(self.windows)))


def test_the_centre_of_a_window_outweighs_its_edge() -> None:
    profile = predict(WindowNumber(), image(12, 10, 6))[0, :, 5, 3]
    assert profile[0] == 1
    assert profile[-1] == 2
    assert profile[4] < 1.5 < profile[7]  # both windows hold these


def test_finished_slices_are_handed_on_while_windows_are_left() -> None:
    network = WindowNumber()
    sliding = SlidingWindow(
        [Member(network, PATCH, "fp32")], device=CPU, overlap=0.5, window_batch=1
    )
    box = ((0, 40), (0, 10), (0, 6))
    windows_at = {
        brick.box[0]: len(network.windows)
        for brick in sliding.bricks(image(40, 10, 6), BOUNDS_C4, box)
    }
    assert len(network.windows) == 9
    assert windows_at[0, 4] == 1
    # No more than the depth of one window is ever held.
    assert all(end <= 4 * (number - 1) + 8 for (_, end), number in windows_at.items())


def test_the_sums_that_are_held_do_not_grow_with_the_number_of_slices() -> None:
    patch, (height, width), classes = (16, 16, 16), (48, 64), 5
    most = {}
    for depth in (32, 160):
        box = ((0, depth), (0, height), (0, width))
        grid = WindowGrid.over(box, (depth, height, width), patch, 0.5)
        sums = _Sums([grid], CPU)
        held = [
            brick.logits_KDHW.numel() + sum(other.numel() for other in sums._sums.values())
            for window in grid
            for brick in sums.add(window, torch.zeros(classes, *patch))
        ]
        assert not sums._sums
        most[depth] = max(held)
    # As docs/inference.md has it: half a patch of all slices, and the rows of a window.
    assert most[160] == most[32] <= classes * (8 * height * width + 16 * 16 * width)


def test_a_heap_that_grows_is_given_back_before_it_is_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A heap of the C library once grew to 7.6 GiB in 1,125 windows of 64^3 and 25 classes."""
    gib = 2.0**20
    resident_kib, given_back = gib, []

    def give_back() -> None:
        nonlocal resident_kib
        given_back.append(resident_kib / gib)
        resident_kib = gib

    def grow(done: int, total: int) -> None:
        nonlocal resident_kib
        resident_kib += 0.026 * gib  # the output of one such window

    monkeypatch.setattr(sliding_window, "status_kib", lambda field: resident_kib)
    monkeypatch.setattr(sliding_window, "release_freed_memory", give_back)
    sliding = SlidingWindow(
        [Member(Probe(), PATCH, "fp32")], device=CPU, overlap=0.5, window_batch=1
    )
    for _ in sliding.bricks(image(64, 20, 12), BOUNDS_C4, ((0, 64), (0, 20), (0, 12)), grow):
        pass
    assert len(given_back) == 15  # of 135 windows
    assert max(given_back) < 1.3


def test_the_network_runs_in_evaluation_mode_without_gradients_and_gets_its_mode_back() -> None:
    network = nn.Sequential(Probe(), nn.Dropout(0.9))
    network.train()
    logits = predict(network, image(*PATCH))
    assert not logits.requires_grad
    assert (logits != 0).all()
    assert network.training
    assert network[1].training


def test_the_mode_comes_back_after_an_error() -> None:
    networks = nn.Linear(1, 1), nn.Linear(1, 1).eval()
    with pytest.raises(RuntimeError, match="in the middle"), evaluating(*networks):
        raise RuntimeError("in the middle")
    assert [network.training for network in networks] == [True, False]


def test_half_precision_is_the_network_s_alone() -> None:
    network = nn.Sequential(nn.Conv3d(2, 3, 1), probe := Probe())
    logits = predict(network, image(*PATCH), precision="bf16")
    assert probe.windows[0].dtype == torch.bfloat16
    assert logits.dtype == torch.float32


def test_logits_too_large_for_the_device_are_stitched_on_the_cpu(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class FullOnce(Probe):
        """Has no memory left for the third window, when sums of the first two are held."""

        def forward(self, x_BCDHW: Tensor) -> Tensor:
            self.windows.append(x_BCDHW)
            if len(self.windows) == 3:
                raise torch.OutOfMemoryError
            return x_BCDHW * self.scale

    with caplog.at_level(logging.WARNING):
        logits = predict(FullOnce(), image(19, 10, 6))
    torch.testing.assert_close(logits, predict(Probe(), image(19, 10, 6)))
    assert "stitching them on the CPU" in caplog.text


def test_a_network_too_large_for_the_device_is_an_error() -> None:
    class AlwaysFull(Probe):
        def forward(self, x_BCDHW: Tensor) -> Tensor:
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        predict(AlwaysFull(), image(*PATCH))


def test_a_member_is_mirrored_along_the_axes_that_its_training_flipped() -> None:
    flips = ["data=sample", "augment.flip_probability=0.5", "augment.flip_axes=[W,D]"]
    network = Probe()
    assert Member.from_config(network, load_config(flips), mirror=True).mirror_axes == (0, 2)
    assert Member.from_config(network, load_config(flips)).mirror_axes == ()
    unflipped = load_config([*flips[:1], "augment.flip_probability=0"])
    assert Member.from_config(network, unflipped, mirror=True).mirror_axes == ()
    member = Member.from_config(network, load_config(flips), mirror=True, precision="bf16")
    assert member.precision == "bf16"


def test_mirrored_outputs_are_turned_back_before_they_are_averaged() -> None:
    network = Probe()
    x_BCDHW = torch.from_numpy(image(3, 4, 5))[None]
    torch.testing.assert_close(Member(network, PATCH, "fp32", (0, 2)).logits(x_BCDHW), x_BCDHW)
    assert len(network.windows) == 4
    assert torch.equal(network.windows[3], x_BCDHW.flip(2, 4))
