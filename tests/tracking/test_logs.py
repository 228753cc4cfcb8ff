from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console

from segresmamba.tracking import StepLog, log_as

VALUES = {"loss": 0.5, "step_s": 2.0, "data_wait_s": 0.5, "memory_gib": 1.25}


@pytest.fixture(autouse=True)
def _all_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def record(log: StepLog, steps: range) -> None:
    with log:
        for step in steps:
            log.step(step, VALUES)


def test_without_a_terminal_there_is_a_line_a_minute_and_one_at_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = iter(float(second) for second in range(0, 10_000, 10))  # a record every 10 s
    monkeypatch.setattr("segresmamba.tracking.logs.time.monotonic", lambda: next(now_s))
    record(StepLog("auto", 21, enabled=True, console=Console(file=io.StringIO())), range(1, 22))
    told = [message.split()[1] for message in caplog.messages]
    assert told == ["1/21", "7/21", "13/21", "19/21", "21/21"]


def test_a_line_has_loss_dice_wait_memory_and_the_time_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with StepLog("text", 100, enabled=True) as log:
        log.step(10, VALUES | {"dice": 0.875})
    assert caplog.messages == [
        "step 10/100  loss 0.5000  Dice 0.8750  2.00 s/step  25 % data wait  1.25 GiB  3 min left"
    ]


def test_a_terminal_gets_a_live_bar(caplog: pytest.LogCaptureFixture) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with StepLog("auto", 4, enabled=True, console=console) as log:
        log.step(2, VALUES | {"dice": 0.875})
    shown = screen.getvalue()
    for part in ("2/4", "loss 0.5000", "Dice 0.8750", "25 % data wait", "1.25 GiB", "4 s left"):
        assert part in shown
    assert caplog.messages == []


def test_other_ranks_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    record(StepLog("text", 4, enabled=False), range(1, 5))
    assert caplog.messages == []


PROGRAM = """
import logging, sys
from rich.console import Console
from rich.logging import RichHandler
from segresmamba.tracking import StepLog, log_as
logging.basicConfig(level="INFO", handlers=[RichHandler(console=Console(stderr=True))])
log_as(sys.argv[1], 3)
with StepLog(sys.argv[1], 2, enabled=True) as log:
    log.step(1, dict(loss=0.5, step_s=2.0, data_wait_s=0.5, memory_gib=1.25))
    logging.getLogger("segresmamba").info("case %s", "a")
    log.step(2, dict(loss=0.25, step_s=2.0, data_wait_s=0.5, memory_gib=1.25))
try:
    raise ValueError("no")
except ValueError:
    logging.getLogger("segresmamba").exception("failed")
"""


def test_json_on_request_is_one_object_a_line_with_the_rank_and_the_numbers() -> None:
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM, "json"], capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in child.stderr.splitlines()]
    assert [line["rank"] for line in lines] == [3] * 4
    assert (lines[0]["step"], lines[0]["loss"], lines[0]["left_s"]) == (1, 0.5, 2.0)
    assert lines[1]["message"] == "case a"
    assert "ValueError: no" in lines[3]["traceback"]


def test_on_a_real_terminal_lines_of_the_log_come_above_the_bar() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150"}
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "auto"], stderr=theirs, stdout=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        shown += block
    os.close(ours)
    assert child.wait() == 0
    assert b"\x1b[2K" in shown  # lines are drawn over: it is live
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "2/2" in text  # whether 1/2 was drawn depends on the time
    assert "loss 0.2500" in text
    (line,) = [line for line in re.split(r"[\r\n]", text) if "case a" in line]
    assert "step" not in line  # it does not hang on the bar


def test_any_other_style_leaves_the_handlers_alone() -> None:
    before = list(logging.getLogger().handlers)
    log_as("auto", 0)
    log_as("text", 0)
    assert logging.getLogger().handlers == before
