"""The Chromium of this machine, and how to get one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGE = "chromium"
# WebGL without a graphics card, which takes the processor instead.
WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


def found() -> str | None:
    """Path of the program."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def launcher(program: str) -> Iterator[Callable[..., Browser]]:
    """Starts browsers without a window, each with further options; all end with the block."""
    with sync_playwright() as playwright:

        def launch(*options: str) -> Browser:
            # Root, as in a container, has no sandbox; /dev/shm is small there.
            common = ["--no-sandbox", "--disable-dev-shm-usage"]
            return playwright.chromium.launch(executable_path=program, args=[*common, *options])

        yield launch
