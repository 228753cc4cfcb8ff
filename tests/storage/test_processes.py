"""Calls in several processes, one of which the kernel may kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from segresmamba.errors import DataError
from segresmamba.storage.processes import outcomes

KILLED = DataError("a process was killed", where="workers", got=2, remedy="fewer")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_call_gives_its_result_by_its_name(workers: int) -> None:
    calls = {str(number): partial(pow, number, 2) for number in range(4)}
    assert dict(outcomes(calls, workers, KILLED)) == {"0": 0, "1": 1, "2": 4, "3": 9}
    assert not dict(outcomes({}, workers, KILLED))


def test_a_killed_process_is_the_error_that_the_caller_gives() -> None:
    with pytest.raises(DataError, match="a process was killed"):
        dict(outcomes({"a": die}, 2, KILLED))


def test_a_script_that_is_no_module_is_told_how_to_be_one(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        "from functools import partial\n"
        "from segresmamba.errors import DataError\n"
        "from segresmamba.storage.processes import outcomes\n"
        "killed = DataError('killed', where='', got='', remedy='')\n"
        "print(dict(outcomes({'a': partial(pow, 2, 2), 'b': partial(pow, 3, 2)}, 2, killed)))\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "the processes that share the work cannot start" in ended.stderr
    assert '`if __name__ == "__main__":`' in ended.stderr
