"""What Triton needs of a machine, by the rules of its own build."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from segresmamba.build_tools import missing_build_tool


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all there is on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path


@pytest.fixture
def headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which Python's headers are looked for."""
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path / "include"))
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    return tmp_path / "include"


def write_command(path: Path) -> None:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_gcc_or_clang_will_do(commands: Path, headers: Path, name: str) -> None:
    assert missing_build_tool() == ("a C compiler (no gcc or clang on the PATH, and CC is not set)")
    write_command(commands / name)
    assert missing_build_tool() is None


def test_a_compiler_that_is_named_comes_first(
    commands: Path, headers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_command(commands / "gcc")
    monkeypatch.setenv("CC", str(commands / "mine"))
    assert "cannot be run" in str(missing_build_tool())
    write_command(commands / "mine")
    assert missing_build_tool() is None


def test_pythons_headers_are_needed_too(commands: Path, headers: Path) -> None:
    write_command(commands / "gcc")
    (headers / "Python.h").unlink()
    assert missing_build_tool() == f"Python.h (not in {headers})"
