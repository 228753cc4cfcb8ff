"""The Chromium of this machine, and how to get one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGE = "chromium"


def found() -> str | None:
    """Path of the program."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def headless(program: str) -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        # Root, as in a container, has no sandbox; /dev/shm is small there.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        # WebGL without a graphics card.
        options += ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()
