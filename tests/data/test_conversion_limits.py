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
from tests.data.raw import describe, image_path, label_path, write_nifti, write_raw

CONVERT = """
import sys
from pathlib import Path
from segresmamba.data import Policy, convert
warm, raw, store = map(Path, sys.argv[1:4])
policy = Policy.of_words(**dict(zip(("spacing", "crop", "intensity", "dtype"), sys.argv[4:])))
def kib(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])
convert(warm, store.with_name("warm"), policy=policy)
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far, and the parent's
before = kib("VmRSS")
convert(raw, store, policy=policy)
print(kib("VmHWM") - before)
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


@pytest.mark.parametrize(
    ("channels", "dtype", "policy"),
    [
        (1, np.float32, ("keep", "no", "auto", "auto")),
        (3, np.float32, ("1.6,2.2,1.1", "yes", "auto", "int16")),
    ],
    ids=["as in the files", "every policy"],
)
def test_a_process_takes_at_most_twice_the_largest_case(
    tmp_path: Path, channels: int, dtype: type, policy: tuple[str, ...]
) -> None:
    """Above what it has loaded; a case as float32, which takes most. Of three cases, as of one."""
    shape = (150, 150, 120) if channels > 1 else (220, 200, 180)
    warm = write_raw(tmp_path / "a", shapes=[(20, 20, 20)] * 2, channels=channels, dtype=dtype)
    raw = write_raw(tmp_path / "b", shapes=[(20, 20, 20)], channels=channels, dtype=dtype)
    describe(raw, numTraining=4)
    rng = np.random.default_rng(0)
    for number in range(1, 4):
        noise = (rng.integers(1, 1000, shape, np.int16) // 4).astype(dtype)
        case = f"case_{number}"
        label = np.zeros(shape, np.uint8)
        label[40:90, 30:80, 50:100], label[95:99, 95:99, 95:99] = 1, 2
        write_nifti(label_path(raw, case), label)
        for channel in range(channels):
            first = raw / "imagesTr" / f"noise_{channel}.nii.gz"
            if number == 1:
                write_nifti(first, noise)
            os.link(first, image_path(raw, case, channel))
    for path in (raw / "imagesTr").glob("noise*"):
        path.unlink()
    command = [sys.executable, "-c", CONVERT, warm, raw, tmp_path / "store", *policy]
    grown_kib = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    case_kib = channels * np.prod(shape) * 4 >> 10
    assert grown_kib < 2 * case_kib
