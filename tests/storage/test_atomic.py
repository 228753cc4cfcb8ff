from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from segresmamba.storage.atomic import (
    atomic_path,
    complete_folder,
    remove_abandoned,
    remove_leftovers,
    temporary_path,
    write_text,
)


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for text in ("one", "two"):
        write_text(path, text)
        assert path.read_text() == text
    assert os.listdir(tmp_path) == ["file.txt"]


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "before")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_the_temporary_name_ends_as_the_name_does(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "label.nii.gz") as temporary:
        assert temporary.name.endswith("label.nii.gz")
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"")


def test_a_killed_writer_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "before")
    code = (
        "import os, signal, sys; from pathlib import Path;"
        "from segresmamba.storage.atomic import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "before"
    assert len(os.listdir(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_folder_gets_its_name_when_it_is_complete(tmp_path: Path) -> None:
    part = tmp_path / ".part"
    (part / "deep").mkdir(parents=True)
    (part / "deep" / "file").write_text("x")
    complete_folder(part, tmp_path / "whole")
    assert (tmp_path / "whole" / "deep" / "file").read_text() == "x"
    assert not part.exists()


def test_leftovers_of_one_file_can_be_removed_alone(tmp_path: Path) -> None:
    others = {".part-node-1-other.db", ".part-node-1-notmine.db"}
    for name in {".part-node-1-mine.db", ".part-node-2-mine.db"} | others:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, "mine.db")
    assert set(os.listdir(tmp_path)) == others


def test_what_a_living_process_writes_is_not_abandoned(tmp_path: Path) -> None:
    host = temporary_path(tmp_path / "x").name.split("-")[1]
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    living = {f".part-{host}-{os.getppid()}-mine", f".part-{host}-1-mine"}
    others = {".part-elsewhere-7-1-mine", ".part-elsewhere-7-mine.json", "mine"}
    left = {f".part-{host}-{pid}-mine" for pid in (ended.pid, os.getpid(), 10**30)}
    for name in living | others | left | {".part-elsewhere-7-mine"}:
        (tmp_path / name).touch()
    (tmp_path / f".part-{host}-{ended.pid}-folder" / "deep").mkdir(parents=True)
    remove_abandoned(tmp_path, {"mine", "folder"})
    assert set(os.listdir(tmp_path)) == living | others


def test_a_file_system_that_cannot_sync_folders_takes_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "file.txt", "text")
    assert (tmp_path / "file.txt").read_text() == "text"
