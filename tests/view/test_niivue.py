"""The page's library: pinned, checked, and installed only on request."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from segresmamba.errors import BackendMissingError, DataError
from segresmamba.view import niivue


@pytest.fixture
def not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path that it would have."""
    script = tmp_path / "page" / niivue.SCRIPT.name
    script.parent.mkdir()
    monkeypatch.setattr(niivue, "SCRIPT", script)
    return script


def test_without_it_one_screen_says_how_to_get_it(not_installed: Path) -> None:
    with pytest.raises(BackendMissingError) as caught:
        niivue.require_niivue()
    screen = caught.value.screen()
    assert str(not_installed) in screen
    assert "segresmamba view --install-niivue npm" in screen
    assert f"npm pack @niivue/niivue@{niivue.VERSION}" in screen


def test_another_archive_is_refused_before_it_is_opened(not_installed: Path) -> None:
    archive = not_installed.parent / "niivue.tgz"
    with tarfile.open(archive, "w:gz") as package:
        package.add(__file__, "package/dist/niivue.umd.js")
    with pytest.raises(DataError, match=r"not the package of NiiVue 0\.69\.0"):
        niivue.install(str(archive))
    assert not not_installed.exists()


def test_an_archive_that_is_not_there_is_named(not_installed: Path) -> None:
    archive = not_installed.parent / "absent.tgz"
    with pytest.raises(DataError) as caught:
        niivue.install(str(archive))
    assert caught.value.where == str(archive)


def test_without_npm_the_remedy_names_the_archive(
    not_installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(not_installed.parent))
    with pytest.raises(BackendMissingError) as caught:
        niivue.install("npm")
    assert "npm" in caught.value.got
    assert "niivue-niivue-0.69.0.tgz" in caught.value.remedy


def test_what_is_installed_is_not_fetched_again(
    not_installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    not_installed.write_text("installed")
    monkeypatch.setenv("PATH", "")
    assert niivue.install("npm") == not_installed
    niivue.require_niivue()


def test_its_licence_lies_beside_it() -> None:
    text = (niivue.PAGE / "niivue-LICENSE.txt").read_text()
    assert "BSD 2-Clause License" in text
    assert "Copyright (c) 2021, Niivue" in text
