"""A finished sweep, its MLflow server, its report, and a headless Chromium to look at them with.

SEGRESMAMBA_BROWSER=install installs Debian's Chromium. Where there is none the tests are skipped,
and the summary says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from playwright.sync_api import Browser, Page, expect

from segresmamba.report import Report, write_report
from segresmamba.tracking import sync
from tests import debian
from tests.browser import chromium
from tests.engine.tiny import tiny_config
from tests.tracking.server import Server

MODELS = ("segresmamba", "segresmamba_nomamba")
SEEDS = (0, 1)
EXPERIMENT, GROUP = "comparison", "networks-and-seeds"
TRIALS = [f"{model}-{seed}" for model in MODELS for seed in SEEDS]
PATIENCE_MS = 60_000  # the machine may be busy
expect.set_options(timeout=PATIENCE_MS)
_SKIPPED = pytest.StashKey[set[str]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


def skip_loudly(config: pytest.Config, reason: str) -> NoReturn:
    """Skip, and say so at the end of the output."""
    config.stash.setdefault(_SKIPPED, set()).add(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def launch(request: pytest.FixtureRequest) -> Iterator[Callable[..., Browser]]:
    """Starts browsers."""
    asked = os.environ.get("SEGRESMAMBA_BROWSER") == "install"
    if asked and not chromium.found() and debian.may_install():
        debian.install(chromium.PACKAGE)
    program = chromium.found()
    if program is None:
        skip_loudly(
            request.config, f"no {', '.join(chromium.NAMES)} (apt-get install {chromium.PACKAGE})"
        )
    with chromium.launcher(program) as launch:
        yield launch


@pytest.fixture(scope="session")
def browser(launch: Callable[..., Browser]) -> Iterator[Browser]:
    """The browser, for the session."""
    browser = launch()
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def sweep(browser: Browser, tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs: two networks, two seeds each, trained, evaluated and in MLflow."""
    from segresmamba.engine import train
    from segresmamba.evaluation import evaluate_run

    root = tmp_path_factory.mktemp("runs")
    for model in MODELS:
        for seed in SEEDS:
            config = tiny_config(
                tiny_store, root, f"model={model}", f"seed={seed}",
                f"run.name={model}-{seed}", "train.max_steps=6", "train.validate_every=3",
                "validation.overlays=1", "tracking.emissions=true", "tracking.log_model=false",
                f"tracking.experiment={EXPERIMENT}", f"tracking.group={GROUP}",
            )  # fmt: skip
            assert train(config)["status"] == "finished"
            evaluate_run(root / f"{model}-{seed}")
            sync(root / f"{model}-{seed}")
    return root


@pytest.fixture(scope="session")
def server(sweep: Path) -> Iterator[Server]:
    """MLflow's own server over the sweep's database."""
    server = Server(sweep)
    server.start()
    server.wait()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def report(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of the sweep."""
    out = tmp_path_factory.mktemp("report")
    return write_report([str(sweep)], out, uri=lambda: "", baseline=TRIALS[-1])


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(PATIENCE_MS)
    yield page
    page.close()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    reasons = config.stash.get(_SKIPPED, set())
    if reasons:
        terminalreporter.section("BROWSER TESTS DID NOT RUN", sep="!", yellow=True, bold=True)
        for reason in sorted(reasons):
            terminalreporter.line(f"Nobody looked at some of the pages: {reason}")
        terminalreporter.line("SEGRESMAMBA_BROWSER=install installs it where root may use apt-get.")
