"""How a rank's process ends; each in a process of its own, named as submitit's."""

import subprocess
import sys

import pytest

# As a library does whose thread is in the way: it aborts once Python takes itself apart.
CODE = """
import atexit, importlib.machinery, os, sys
sys.modules["__main__"].__spec__ = importlib.machinery.ModuleSpec({name!r}, None)
from launch.quick_exit import QuickExit
class Library:
    def __del__(self, abort=os.abort):
        abort()
kept = Library()
leaving = QuickExit()
atexit.register(print, "exit handlers ran")
leaving.is_well = {is_well}
sys.exit({code})
"""
SUBMITIT = "submitit.core._submit"


@pytest.mark.parametrize(
    ("name", "is_well", "code", "ended"),
    [(SUBMITIT, True, 0, 0), (SUBMITIT, False, 2, -6), ("another", True, 0, -6)],
)
def test_only_a_rank_that_is_done_leaves_before_python_takes_itself_apart(
    name: str, is_well: bool, code: int, ended: int
) -> None:
    words = [sys.executable, "-c", CODE.format(name=name, is_well=is_well, code=code)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (ended, "exit handlers ran\n")
