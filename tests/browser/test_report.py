"""The report as a reader sees it."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page

from segresmamba.report import Report
from tests.browser.conftest import MODELS, SEEDS, TRIALS


@pytest.fixture
def opened(page: Page, report: Report) -> Page:
    """The page, open: without an error in the console, and without asking for another file."""
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.page.as_uri())
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [report.page.as_uri()]
    return page


def column(page: Page, table: str, title: str) -> list[str]:
    """The texts of a column from top to bottom."""
    titles = page.locator(f"#{table} th button").all_inner_texts()
    cells = page.locator(f"#{table} tbody tr td:nth-child({titles.index(title) + 1})")
    return cells.all_inner_texts()


def test_it_opens_without_a_complaint_and_asks_for_nothing(opened: Page) -> None:
    assert opened.title() == f"{len(MODELS)} networks compared"
    assert column(opened, "networks", "Network") == sorted(MODELS)
    assert column(opened, "networks", "Runs") == [str(len(SEEDS))] * len(MODELS)
    assert sorted(column(opened, "runs", "Run")) == sorted(TRIALS)


def test_what_was_measured_is_in_the_table(opened: Page) -> None:
    for title in ("Parameters", "Memory", "Step", "Epoch", "Energy", "CO₂e", "Dice", "HD95"):
        for text in column(opened, "networks", title):
            assert float(text.split()[0].replace(",", "")) >= 0, title


def test_all_pictures_load(opened: Page) -> None:
    widths = opened.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) >= 2 + len(MODELS)  # trade-off, curves, a worst case of each network
    assert all(width > 300 for width in widths)


@pytest.mark.parametrize("title", ["Run", "Seed", "Step", "Dice"])
def test_a_click_on_a_title_sorts_and_another_one_turns_it_round(opened: Page, title: str) -> None:
    def key(text: str) -> float | str:
        if title == "Run":
            return text.replace("_", " ")  # which the browser's collation puts before a hyphen
        return float(text.replace(",", ""))

    heads = opened.locator("#runs th button")
    heads.get_by_text("Memory").click()  # another order before it
    head = heads.get_by_text(title, exact=True)
    head.click()
    ascending = column(opened, "runs", title)
    assert len(ascending) == len(TRIALS)
    assert list(map(key, ascending)) == sorted(map(key, ascending))
    assert len(set(ascending)) > 1
    head.click()
    descending = column(opened, "runs", title)
    assert list(map(key, descending)) == sorted(map(key, ascending), reverse=True)
    assert descending != ascending


def test_sorting_works_from_the_keyboard_and_is_announced(opened: Page) -> None:
    head = opened.locator("#runs th", has_text="Seed")
    head.locator("button").focus()
    opened.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(opened, "runs", "Seed") == ["0", "0", "1", "1"]


@pytest.mark.parametrize("width", [1280, 800, 390])
def test_nothing_is_wider_than_the_window(opened: Page, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 900})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_it_can_be_printed(opened: Page) -> None:
    assert opened.pdf(prefer_css_page_size=True).startswith(b"%PDF")
