"""`segresmamba view` as its user sees it: the page in a browser, over a really evaluated run."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from threading import Thread

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from segresmamba.view import niivue
from segresmamba.view.cases import ViewRequest
from segresmamba.view.server import ViewServer
from tests.browser.chromium import WEBGL
from tests.browser.conftest import skip_loudly
from tests.view.runs import evaluated_run
from tests.view.test_cases import write_volume

Picture = np.ndarray[tuple[int, int, int], np.dtype[np.int16]]


@pytest.fixture(scope="module")
def browser(launch: Callable[..., Browser]) -> Iterator[Browser]:
    """A browser with WebGL."""
    browser = launch(*WEBGL)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def library(request: pytest.FixtureRequest, browser: Browser) -> None:
    """NiiVue; `make test` has installed it where there is npm."""
    asked = os.environ.get("SEGRESMAMBA_BROWSER") == "install"
    if asked and shutil.which("npm") is not None:
        niivue.install("npm")
    if not niivue.SCRIPT.exists():
        skip_loudly(request.config, "no NiiVue (segresmamba view --install-niivue npm)")


@pytest.fixture(scope="module")
def server(
    library: None, tiny_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ViewServer]:
    run = evaluated_run(tmp_path_factory.mktemp("viewed"), tiny_store.parent / "raw")
    with ViewServer(ViewRequest([str(run)]).open()) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def complaints(page: Page, server: ViewServer) -> Iterator[list[str]]:
    """What the console says, and requests to anywhere else; a test that leaves some has failed."""
    found: list[str] = []

    def note_request(url: str) -> None:
        if not url.startswith((server.url, "data:", "blob:")):
            found.append(f"request: {url}")

    page.on("console", lambda message: found.append(message.text))
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("request", lambda request: note_request(request.url))
    yield found
    assert found == []


@pytest.fixture
def opened(page: Page, server: ViewServer, complaints: list[str]) -> Page:
    """The page with the first case."""
    page.set_viewport_size({"width": 1000, "height": 600})  # without a graphics card, pixels cost
    page.goto(server.url)
    wait_for_case(page, 0)
    return page


def wait_for_case(page: Page, number: int) -> None:
    expect(page.locator("body")).to_have_attribute("data-shown", str(number))


def drawing(page: Page) -> Picture:
    """The canvas as it is on the screen."""
    content = page.locator("#canvas").screenshot()
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.int16)


def coloured(picture: Picture) -> int:
    """How many pixels are not grey."""
    return int(np.count_nonzero(np.ptp(picture, axis=2) > 30))


def test_the_first_case_is_the_worst_and_is_drawn_with_its_prediction(
    opened: Page, server: ViewServer
) -> None:
    names = opened.locator("#cases .name").all_inner_texts()
    assert names == [case.name for case in server.shown.cases]
    scores = [float(text) for text in opened.locator("#cases .dice").all_inner_texts()]
    assert scores == sorted(scores)
    picture = drawing(opened)
    assert len(np.unique(picture)) > 50
    assert coloured(picture) > 500
    assert opened.locator("#notice").is_hidden()


def test_the_next_case_is_another_picture(opened: Page) -> None:
    first = drawing(opened)
    opened.keyboard.press("n")
    wait_for_case(opened, 1)
    second = drawing(opened)
    assert np.count_nonzero(np.abs(first - second).max(axis=2) > 20) > 500
    opened.locator("#cases button").first.click()
    wait_for_case(opened, 0)
    assert opened.locator("#cases button").first.get_attribute("aria-current") == "true"


def test_a_class_can_be_hidden_and_shown(opened: Page) -> None:
    both = coloured(drawing(opened))
    opened.keyboard.press("1")
    opened.get_by_label("box").uncheck()
    assert coloured(drawing(opened)) < both / 20
    assert not opened.get_by_label("ball").is_checked()
    opened.get_by_label("ball").check()
    opened.keyboard.press("2")
    assert coloured(drawing(opened)) == pytest.approx(both, rel=0.05)


def test_all_classes_can_be_hidden_at_once(opened: Page) -> None:
    opened.keyboard.press("0")
    assert not opened.get_by_label("ball").is_checked()
    assert not opened.get_by_label("box").is_checked()
    opened.keyboard.press("0")
    assert opened.get_by_label("ball").is_checked()


def test_layers_can_be_switched_and_errors_have_their_own_colours(opened: Page) -> None:
    opened.keyboard.press("p")
    assert coloured(drawing(opened)) < 500
    opened.keyboard.press("e")
    expect(opened.locator("#legend")).to_be_visible()
    red, green, blue = np.moveaxis(drawing(opened), 2, 0)
    assert np.count_nonzero((red > 200) & (green < 90) & (blue < 90)) > 100  # false positives
    opened.get_by_label("errors").uncheck()
    expect(opened.locator("#legend")).to_be_hidden()
    opened.get_by_label("reference").check()
    assert coloured(drawing(opened)) > 100


def test_dice_of_each_class_is_that_of_the_evaluation(opened: Page, server: ViewServer) -> None:
    shown = [float(text) for text in opened.locator("#classes tbody .dice").all_inner_texts()]
    assert len(shown) == 2
    case = server.shown.cases[0]
    assert sum(shown) / 2 == pytest.approx(case.dice, abs=1e-3)


def test_the_window_changes_what_is_drawn(opened: Page) -> None:
    opened.keyboard.press("p")
    before = drawing(opened)
    low, high = opened.locator("#low"), opened.locator("#high")
    automatic = low.input_value(), high.input_value()
    low.fill("-1000")
    high.fill("1000")
    high.press("Enter")
    assert np.abs(drawing(opened) - before).mean() > 5
    opened.locator("#automatic").click()
    assert (low.input_value(), high.input_value()) == automatic


def test_one_plane_and_3d_can_be_chosen(opened: Page) -> None:
    pictures = [drawing(opened)]
    for _ in range(4):
        opened.keyboard.press("v")
        pictures.append(drawing(opened))
        assert len(np.unique(pictures[-1])) > 50
    assert all(np.any(one != other) for one, other in pairwise(pictures))
    assert opened.locator("#view").input_value() == "4"


def test_another_channel_is_another_picture(opened: Page) -> None:
    before = drawing(opened)
    opened.get_by_label("Channel").select_option(label="channel1")
    wait_for_case(opened, 0)
    assert np.any(drawing(opened) != before)


def test_labels_of_any_value_are_drawn(page: Page, library: None, tmp_path: Path) -> None:
    """A colour for each value up to the largest would be a wider texture than WebGL takes."""
    voxels = np.zeros((20, 20, 20), np.int16)
    voxels[4:12], voxels[12:16] = 14175, 32767  # FreeSurfer has the first
    image = write_volume(tmp_path / "image.nii.gz", shape=(20, 20, 20))
    label = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(voxels, nib.load(image).affine), label)
    request = ViewRequest([str(image)], label=label, reference=label)
    with ViewServer(request.open()) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        page.goto(server.url)
        wait_for_case(page, 0)
        both = coloured(drawing(page))
        assert both > 500
        expect(page.locator("#status")).to_contain_text("prediction: label 14175")
        assert page.locator("#classes .dice").all_inner_texts() == ["1.000", "1.000"]
        page.keyboard.press("1")
        assert 0 < coloured(drawing(page)) < both
        page.keyboard.press("2")
        assert coloured(drawing(page)) == 0
        server.shutdown()


def test_files_of_different_grids_are_shown_with_a_warning(
    page: Page, library: None, tmp_path: Path
) -> None:
    image = write_volume(tmp_path / "image.nii.gz", shape=(20, 20, 20))
    label = write_volume(tmp_path / "label.nii.gz", shape=(20, 20, 19))
    reference = write_volume(tmp_path / "reference.nii.gz", shape=(20, 20, 20))
    request = ViewRequest([str(image)], label=label, reference=reference)
    with ViewServer(request.open()) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        page.goto(server.url)
        wait_for_case(page, 0)
        expect(page.locator("#notice")).to_contain_text("prediction is on another grid")
        assert page.locator("#layers li").count() == 2  # no errors
        server.shutdown()


def test_a_prediction_that_cannot_be_read_leaves_the_rest_of_the_case(
    page: Page, library: None, tmp_path: Path
) -> None:
    image = write_volume(tmp_path / "image.nii.gz", shape=(20, 20, 20))
    label = write_volume(tmp_path / "label.nii", shape=(20, 20, 20))
    with ViewServer(ViewRequest([str(image)], label=label, reference=image).open()) as server:
        label.write_bytes(label.read_bytes()[:400])
        Thread(target=server.serve_forever, daemon=True).start()
        page.goto(server.url)
        wait_for_case(page, 0)
        expect(page.locator("#notice")).to_contain_text("a file is truncated or damaged")
        expect(page.get_by_label("reference")).to_be_visible()
        # An image that cannot be read leaves nothing on the screen, whatever was there before.
        image.unlink()
        page.locator("#cases button").click()
        expect(page.locator("#notice")).to_contain_text("a file is missing")
        wait_for_case(page, 0)
        assert coloured(drawing(page)) == 0
        assert page.locator("#layers li").count() == 0
        server.shutdown()
