"""`segresmamba view` as a user starts and ends it."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segresmamba.cli.main import app
from segresmamba.view import niivue
from tests.processes import started
from tests.view.test_cases import write_volume

COMMAND = [sys.executable, "-m", "segresmamba.cli.main", "view"]


@pytest.mark.skipif(not niivue.SCRIPT.exists(), reason="NiiVue is not installed (npm)")
def test_it_prints_the_address_serves_it_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    image = write_volume(tmp_path / "image.nii.gz")
    with started([*COMMAND, str(image)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        cases, page = process.stdout.readline(), process.stdout.readline()
        address = page.split()[1]
        with urllib.request.urlopen(address) as answer:
            assert b"<title>SegResMamba view</title>" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    assert cases == "cases: 1\n"
    assert address.startswith("http://127.0.0.1:")


def test_a_mistake_is_one_screen_and_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, str(tmp_path / "absent.nii.gz")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: a file is missing")
    assert len(done.stderr.splitlines()) == 4


def test_nothing_to_show_is_said() -> None:
    result = CliRunner().invoke(app, ["view"])
    assert "there is nothing to show" in str(result.exception)
