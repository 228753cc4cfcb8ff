"""The documentation site builds without a broken link, and what its first pages say works."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from segresmamba.cli.main import main
from segresmamba.config import load_config
from tests.conftest import write_nnunet_dataset
from tests.engine.tiny import TINY

REPOSITORY = Path(__file__).resolve().parents[1]


def commands(page: str) -> list[list[str]]:
    """The words of each command on a page, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", (REPOSITORY / page).read_text(), flags=re.DOTALL)
    lines = "".join(blocks).splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def run_notebook(name: str, **parameters: object) -> dict[str, Any]:
    """Run the cells of an example with other values of its first cell; returns its variables."""
    cells = json.loads((REPOSITORY / "examples" / name).read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    variables: dict[str, Any] = {}
    exec(code[0], variables)
    assert variables.keys() >= parameters.keys()
    variables |= parameters
    for cell in code[1:]:
        exec(cell, variables)
    return variables


def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        build, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    settings = (tmp_path / "reference" / "settings" / "index.html").read_text()
    assert "train.max_steps" in settings
    python = (tmp_path / "reference" / "python" / "index.html").read_text()
    assert "selective_scan" in python
    assert "segresmamba predict" in (tmp_path / "reference" / "commands" / "index.html").read_text()


def test_the_commands_for_your_own_data_work_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small network and few steps, which the page leaves to `configure`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "svg")  # no window, and no warning that there is none
    raw = write_nnunet_dataset(tmp_path / "Dataset001_Mine")
    for kind in ("images", "labels"):
        (tmp_path / f"{kind}Ts").mkdir()
        for file in (raw / f"{kind}Tr").glob("case0*"):
            shutil.copy(file, tmp_path / f"{kind}Ts")
    small = [word for word in TINY if word != "data=custom"]
    for program, *words in commands("docs/start/own-data.md"):
        assert program == "segresmamba"
        extra = small if words[0] == "train" else []
        monkeypatch.setattr(sys, "argv", [program, *words, *extra])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None), words
    assert (tmp_path / "report" / "report.html").exists()
    assert len(list((tmp_path / "predictions").glob("*.nii.gz"))) == 1
    images = sorted(map(str, (tmp_path / "imagesTs").iterdir()))
    label = run_notebook("use_a_model.ipynb", MODEL="runs/first", IMAGES=images)["label"]
    assert label.array.shape == (40, 40, 40)


@pytest.mark.parametrize(
    "page", ["docs/start/laptop.md", "docs/start/cluster.md", "examples/brain/README.md"]
)
def test_the_settings_of_a_shown_run_are_valid(page: str) -> None:
    runs = [words for words in commands(page) if words[:4] == ["python", "-m", "launch", "train"]]
    assert runs
    for words in runs:
        load_config([word for word in words if "=" in word])
