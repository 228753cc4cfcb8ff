"""What MLflow's own pages show of a finished sweep, found and clicked as a user does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from segresmamba.tracking import read_history
from tests.browser.conftest import EXPERIMENT, GROUP, TRIALS
from tests.tracking.server import Server

# With how much of a value the page leaves out: the third digit after the point, or, of a small
# number, the fourth that counts.
COMPARED = {
    "evaluation/dice/mean": {"abs": 6e-4},
    "memory/host_peak_gib": {"abs": 6e-4},
    "energy/emissions_kg": {"rel": 6e-4},
}
# Names and values of the metrics lie in two grids that scroll together and hold only what is in
# view: the cells of a row have the same distance from the top.
_ROW = """
key => {
  const texts = box => [...box.querySelectorAll("[style*='top:']")].map(cell =>
    [cell.style.top, parseFloat(cell.style.left), cell.textContent]);
  const name = [...document.querySelectorAll("a")].find(link => link.textContent === key);
  if (!name) return [];
  const cells = texts(name.closest("[class*=collapse-content-box]"));
  const top = name.parentElement.style.top;
  const row = cells.filter(cell => cell[0] === top && cell[2] !== key);
  return row.sort((a, b) => a[1] - b[1]).map(cell => cell[2]);
}
"""


@pytest.fixture
def trials(page: Page, server: Server) -> Page:
    """The page of the experiment with the sweep's trials unfolded."""
    page.goto(server.uri)
    page.goto(f"{server.uri}/#/experiments/1/runs")
    expect(page.get_by_text(EXPERIMENT, exact=True).first).to_be_visible()
    page.get_by_role("button", name="Close").click()  # the assistant beside the table
    parent = page.get_by_role("row").filter(has_text=GROUP)
    parent.get_by_role("button").first.click()
    return page


def metric_row(page: Page, key: str) -> list[float]:
    """The values that the comparison shows of a metric, from left to right."""
    page.get_by_text("Metrics", exact=True).last.scroll_into_view_if_needed()
    grid = page.locator(".ReactVirtualized__Grid").last
    # On a busy machine the page may draw a place after the test has left it, so there are rounds.
    for top in [*range(0, int(grid.evaluate("grid => grid.scrollHeight")), 90)] * 10:
        grid.evaluate("(grid, top) => grid.scrollTo(0, top)", top)
        page.wait_for_timeout(100)
        row = page.evaluate(_ROW, key)
        if len(row) > 1:
            return [float(text) for text in row]
    raise AssertionError(f"{key} is not shown")


def test_the_experiment_lists_every_trial(trials: Page) -> None:
    for name in TRIALS:
        expect(trials.get_by_role("link", name=name, exact=True)).to_be_visible()
    expect(trials.get_by_text(f"{len(TRIALS) + 1} matching runs")).to_be_visible()


def test_the_experiments_description_leads_to_the_columns_that_matter(
    page: Page, server: Server
) -> None:
    page.set_viewport_size({"width": 2050, "height": 620})
    page.goto(f"{server.uri}/#/experiments/1")
    # By text and not by role: a dialog of MLflow's hides the page from the roles.
    link = page.locator("a", has_text="Runs with their scores, memory, step time and energy")
    page.goto(f"{server.uri}/{link.get_attribute('href')}")
    heads = page.get_by_role("columnheader")
    for name in ("evaluation/dice/mean", "evaluation/hd95_mm/mean", "energy/energy_kwh"):
        head = heads.get_by_text(name, exact=True)
        expect(head).to_be_visible()
        assert head.evaluate("text => text.scrollWidth <= text.clientWidth"), f"{name} is cut"
    expect(page.get_by_text("Model training", exact=True)).to_be_visible()


def test_the_second_link_compares_the_runs_by_the_same_metrics(page: Page, server: Server) -> None:
    page.set_viewport_size({"width": 2050, "height": 1200})
    page.goto(f"{server.uri}/#/experiments/1")
    link = page.locator("a", has_text="the same as bars")
    page.goto(f"{server.uri}/{link.get_attribute('href')}")
    page.get_by_role("row").filter(has_text=GROUP).get_by_role("button").first.click()
    # All but that of a GPU.
    expect(page.get_by_text(re.compile(r"At a glance\s*\(6\)"))).to_be_visible()
    for name in ("evaluation/dice/mean", "memory/host_peak_gib", "energy/energy_kwh"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()


def test_a_comparison_shows_dice_memory_and_emissions_side_by_side(
    trials: Page, sweep: Path
) -> None:
    chosen = TRIALS[0], TRIALS[-1]
    for name in chosen:
        link = trials.get_by_role("link", name=name, exact=True)
        row = trials.get_by_role("row").filter(has=link)
        row.get_by_role("checkbox", name="Press Space").click()
    trials.get_by_test_id("runs-compare-button").click()
    expect(trials.get_by_text("Comparing 2 Runs")).to_be_visible()
    histories = [read_history(sweep / name) for name in chosen]
    for key, rounding in COMPARED.items():
        recorded = sorted(history.last(key) for history in histories)
        assert sorted(metric_row(trials, key)) == pytest.approx(recorded, **rounding), key


def test_the_artifacts_of_a_trial_show_the_overlay(trials: Page, sweep: Path) -> None:
    trials.get_by_role("link", name=TRIALS[0], exact=True).click()
    trials.get_by_text("Artifacts", exact=True).first.click()
    trials.get_by_text("overlays", exact=True).click()
    (picture,) = (sweep / TRIALS[0] / "overlays").iterdir()
    trials.get_by_text(picture.name).first.click()
    shown = trials.get_by_alt_text(f"overlays/{picture.name}")
    expect(shown).to_be_visible()
    assert (
        shown.evaluate("async image => { await image.decode(); return image.naturalWidth }") > 300
    )
