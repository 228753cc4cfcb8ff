"""The documentation site builds without a broken link, and what its first pages say works."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

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


def run_notebook(name: str, folder: Path, first_cell: str) -> NotebookNode:
    """Run an example in `folder` with its first cell replaced; returns it with its outputs."""
    notebook = nbformat.read(REPOSITORY / "examples" / name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[0].source = first_cell
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


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
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the notebook shows its picture
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
    notebook = run_notebook(
        "use_a_model.ipynb", tmp_path, f'MODEL, IMAGES = "runs/first", {images}'
    )
    _, printed, picture = (cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert "(40, 40, 40)" in printed[0].text
    assert "image/png" in picture[0].data


@pytest.mark.parametrize(
    "page",
    [
        "docs/start/laptop.md",
        "docs/start/cluster.md",
        "examples/brain/README.md",
        "examples/ct/README.md",
    ],
)
def test_the_settings_of_a_shown_run_are_valid(page: str) -> None:
    runs = [words for words in commands(page) if words[:4] == ["python", "-m", "launch", "train"]]
    assert runs
    for words in runs:
        load_config([word for word in words if "=" in word])
