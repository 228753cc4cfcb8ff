from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segresmamba.storage.terminal import shield_output, stop_signals
from tests.processes import started

PROGRAM = """
import logging, sys
from pathlib import Path
from segresmamba.storage.terminal import shield_output
shield_output()
logging.basicConfig(level=logging.INFO)
sys.stdin.readline()  # until the reader is gone
for number in range(100):
    print("step", number, flush=True)
    logging.info("step %d", number)
    sys.stderr.buffer.write(b"copied")
    sys.stderr.flush()
Path(sys.argv[1]).write_text("done")
"""


def test_a_process_outlives_the_reader_of_its_output(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "end")]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with started(command, **pipes) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stderr.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait() == 0
    assert (tmp_path / "end").read_text() == "done"


def test_a_full_disk_under_the_log_ends_nothing(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "end")]
        done = subprocess.run(command, input=b"\n", stdout=full, stderr=full, check=False)
    assert done.returncode == 0
    assert (tmp_path / "end").read_text() == "done"


def test_what_was_lost_is_said_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    with os.fdopen(os.dup(log), "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "__stdout__", stream)
        shield_output()
        print("one", flush=True)
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, stream.fileno())
        print("two", flush=True)
        os.dup2(log, stream.fileno())
        print("three", flush=True)
    for descriptor in (log, full):
        os.close(descriptor)
    lost = "\n[4 bytes of output were lost: No space left on device]\n"
    assert (tmp_path / "log").read_text() == f"one\n{lost}three\n"


def test_what_others_have_put_in_their_place_stays(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    shield_output()
    assert (sys.stdout, sys.stderr) == before


def test_the_loss_of_a_terminal_stops_unless_nohup_has_it_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert signal.SIGHUP in stop_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert stop_signals() == (signal.SIGINT, signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)
