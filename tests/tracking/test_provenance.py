from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from segresmamba import __version__
from segresmamba.tracking.provenance import environment, git_tags, provenance


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one file in it."""
    (tmp_path / "tracked.py").write_text("1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=me", "-c", "user.email=me@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    return tmp_path


def test_commit_and_changes_are_told(checkout: Path) -> None:
    clean = git_tags(checkout / "tracked.py")
    assert len(clean["mlflow.source.git.commit"]) == 40
    assert clean["mlflow.source.git.dirty"] == "False"
    (checkout / "tracked.py").write_text("2\n")
    assert git_tags(checkout / "tracked.py")["mlflow.source.git.dirty"] == "True"


def test_a_package_installed_inside_another_repository_has_no_commit(checkout: Path) -> None:
    (checkout / "site-packages").mkdir()
    (checkout / "site-packages" / "module.py").write_text("")
    assert git_tags(checkout / "site-packages" / "module.py") == {}


def test_without_git_there_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_tags(checkout / "tracked.py") == {}


def test_the_slurm_job_and_the_versions_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[07-08]")
    tags = provenance()
    assert tags["slurm.job_id"] == "4711"
    assert tags["slurm.job_nodelist"] == "gpu[07-08]"
    assert tags["version.segresmamba"] == __version__
    assert {"python", "host", "mlflow.user", "version.torch", "version.mlflow"} < set(tags)


def test_the_environment_lists_every_package() -> None:
    lines = environment().splitlines()
    assert any(line.startswith("torch==") for line in lines)
    assert len(lines) == len(set(lines)) > 50
