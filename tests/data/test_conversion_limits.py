"""What a conversion promises of memory, of being killed, and of a disk that fills up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from segresmamba.data import convert, open_dataset, verify, writer
from segresmamba.errors import DataError
from tests.data.raw import write_raw

CONVERT = """
import resource, sys
from pathlib import Path
from segresmamba.data import convert
warm, raw, store = map(Path, sys.argv[1:])
convert(warm, store.with_name("warm"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(raw, store)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_sigkill_in_mid_conversion_loses_at_most_the_case_at_hand(tmp_path: Path) -> None:
    raw, store = write_raw(tmp_path / "raw", shapes=[(60, 60, 60)] * 12), tmp_path / "store"
    code = (
        "import sys; from pathlib import Path; from segresmamba.data import convert;"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(raw), str(store)])
    while len(list(store.glob("case_*"))) < 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_ino for path in store.glob("case_*")}
    assert 3 <= len(finished) < 12
    with pytest.raises(DataError, match="no converted dataset"):
        open_dataset(store)
    done = convert(raw, store)
    assert set(done.kept) == set(finished)
    assert {name: (store / name).stat().st_ino for name in finished} == finished
    assert verify(store) == []


def test_a_disk_that_fills_up_keeps_the_cases_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, store = write_raw(tmp_path / "raw"), tmp_path / "store"
    rename = os.rename

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "case_2":
            raise OSError(28, "No space left on device", str(target))
        rename(source, target)

    monkeypatch.setattr(writer.os, "rename", full)
    with pytest.raises(DataError, match="cannot be written") as caught:
        convert(raw, store)
    assert "No space left" in caught.value.got
    assert caught.value.where == str(store / "case_2")
    monkeypatch.undo()
    assert not list(store.glob(".*.tmp"))
    assert convert(raw, store).kept == ("case_0", "case_1")


def test_memory_does_not_grow_with_the_number_of_cases(tmp_path: Path) -> None:
    one = write_raw(tmp_path / "one", shapes=[(20, 20, 20), (110, 110, 110)], dtype=np.float32)
    many = write_raw(tmp_path / "many", shapes=[(110, 110, 110)] * 6, dtype=np.float32)
    command = [sys.executable, "-c", CONVERT, str(one), str(many), str(tmp_path / "store")]
    grown_kib = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    case_kib = 110**3 * (4 + 1) >> 10
    assert grown_kib < 2 * case_kib
