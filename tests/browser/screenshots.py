"""Renews the pictures of MLflow and of the report in docs/images.

`python -m tests.browser.screenshots RUNS` wants a folder with runs of one experiment that are
evaluated and in MLflow. RUNS is best given as a copy, because MLflow's server writes into it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from segresmamba.report import write_report
from tests.browser import chromium
from tests.tracking.server import Server

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    runs = parser.parse_args().runs.resolve()
    program = chromium.found()
    if program is None:
        raise SystemExit(f"error: no Chromium; apt-get install {chromium.PACKAGE}")
    expect.set_options(timeout=60_000)
    server = Server(runs)
    server.start()
    server.wait()
    try:
        with chromium.launcher(program) as launch, tempfile.TemporaryDirectory() as out:
            browser = launch()
            picture_mlflow(browser, server.uri)
            picture_report(browser, write_report([str(runs)], Path(out), uri=lambda: "").page)
    finally:
        server.kill()


def picture_mlflow(browser: Browser, uri: str) -> None:
    page = browser.new_page(viewport={"width": 2050, "height": 620})
    page.set_default_timeout(60_000)
    page.goto(f"{uri}/#/experiments/1")
    table = page.get_by_role("link", name="Runs with their scores, memory, step time and energy")
    bars = page.get_by_role("link", name="the same as bars")
    links = [f"{uri}/{link.get_attribute('href')}" for link in (table, bars)]
    page.goto(links[0])
    expect(page.get_by_role("columnheader").get_by_text("energy/energy_kwh")).to_be_visible()
    _close_assistant(page)
    page.screenshot(path=IMAGES / "mlflow-runs.png")
    page.set_viewport_size({"width": 1600, "height": 1000})
    page.goto(links[1])
    expect(page.get_by_text("At a glance")).to_be_visible()
    page.wait_for_timeout(3000)  # until the bars are drawn
    page.screenshot(path=IMAGES / "mlflow-compare.png")


def picture_report(browser: Browser, report: Path) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(report.as_uri())
    page.screenshot(path=IMAGES / "report.png")
    page.locator("#cases").scroll_into_view_if_needed()
    page.screenshot(path=IMAGES / "report-cases.png")


def _close_assistant(page: Page) -> None:
    """The assistant beside the table."""
    close = page.get_by_role("button", name="Close")
    if close.count():
        close.first.click()
    page.wait_for_timeout(1000)


if __name__ == "__main__":
    main()
