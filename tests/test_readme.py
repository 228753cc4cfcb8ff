"""The commands that README shows are commands that the programs take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from launch.sweeps import folds
from segresmamba.config import load_config

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line.partition("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
RUNS = [line for line in COMMANDS if re.match(r"(python -m launch train|sbatch)", line)]


def test_the_two_commands_come_first() -> None:
    assert COMMANDS[:2] == ["make train", "make test"]


@pytest.mark.parametrize("command", RUNS)
def test_the_settings_of_a_shown_command_are_valid(command: str) -> None:
    words = [word for word in shlex.split(command) if "=" in word and word[0] != "-"]
    load_config([word for word in words if word != folds.ALL])


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_what_readme_links_to_is_there(path: str) -> None:
    assert (Path(__file__).resolve().parents[1] / path).exists()
