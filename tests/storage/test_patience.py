from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

from segresmamba.errors import sort_error
from segresmamba.storage import patience as module
from segresmamba.storage.atomic import write_text
from segresmamba.storage.patience import patience, patiently


class Disk:
    """Fails some times, then writes."""

    def __init__(self, code: int, times: int) -> None:
        self.code, self.times, self.asked = code, times, 0

    def __call__(self) -> str:
        self.asked += 1
        if self.asked <= self.times:
            raise OSError(self.code, os.strerror(self.code))
        return "written"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
def test_a_write_is_repeated_and_the_log_says_once_what_it_waits_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    disk = Disk(code, times=3)
    with patience(60):
        assert patiently(disk, tmp_path / "deep" / "f", 5_000_000) == "written"
    assert disk.asked == 4
    waiting, done = [record.getMessage() for record in caplog.records]
    assert f"{tmp_path}/deep/f cannot be written: {os.strerror(code)}" in waiting
    assert "trying again for up to 60 s (data.patience_s)" in waiting
    assert "could be written in the end" in done


def test_once_patience_is_over_one_screen_names_the_folder_and_the_bytes(tmp_path: Path) -> None:
    with patience(0.05), pytest.raises(OSError, match="No space left") as raised:
        patiently(Disk(errno.ENOSPC, times=10**9), tmp_path / "f", 5_000_000)
    # It may come from another rank.
    code, text = sort_error(pickle.loads(pickle.dumps(raised.value)))
    assert code == 75
    assert text.startswith(f"error: the disk is full\n  where:  {tmp_path}/f\n")
    assert f"No space left on device: {tmp_path} needs 5,000,000 bytes, and " in text


def test_outside_a_training_nothing_waits(tmp_path: Path) -> None:
    disk = Disk(errno.ENOSPC, times=2)
    with pytest.raises(OSError, match="No space left"):
        patiently(disk, tmp_path / "f", 1)
    assert disk.asked == 1


def test_an_error_that_stays_is_raised_at_once(tmp_path: Path) -> None:
    disk = Disk(errno.EACCES, times=2)
    with patience(60), pytest.raises(PermissionError):
        patiently(disk, tmp_path / "f", 1)
    assert disk.asked == 1


def test_a_text_is_written_patiently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, asked = os.fsync, list[int]()

    def full_at_first(handle: int) -> None:
        asked.append(handle)
        if len(asked) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full_at_first)
    with patience(60):
        write_text(tmp_path / "f", "text")
    assert (tmp_path / "f").read_text() == "text"
    assert os.listdir(tmp_path) == ["f"]
