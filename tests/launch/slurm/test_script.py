"""The lines of a batch script, run by a real shell with a stand-in for Python."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch.slurm import script
from segresmamba.config import load_config


def run_script(folder: Path, monkeypatch: pytest.MonkeyPatch, preflight: str) -> tuple[int, str]:
    """Run the lines before the ranks, with a preflight that does this; exit code and output."""
    python = folder / "python"
    failure = 'echo "handler: $4"; exit 75'
    python.write_text(
        f"#!/bin/bash\nif [[ $2 = *preflight ]]; then {preflight}; else {failure}; fi\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    lines = script.before_ranks(load_config(["cluster=slurm"]).cluster, folder / "logs")
    ran = subprocess.run(
        ["bash"], input="\n".join([*lines, 'echo "ranks meet at $MASTER_PORT"']),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return ran.returncode, ran.stdout.strip()


def test_the_ranks_get_the_port_that_the_preflight_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_script(tmp_path, monkeypatch, "echo 4711") == (0, "ranks meet at 4711")


def test_a_mistake_that_the_preflight_finds_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_script(tmp_path, monkeypatch, "exit 2") == (2, "")


@pytest.mark.parametrize("code", [75, 1])
def test_other_failures_of_the_preflight_go_to_the_handler_that_queues_the_job_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    assert run_script(tmp_path, monkeypatch, f"exit {code}") == (75, f"handler: {code}")
